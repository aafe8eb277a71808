import pytest
import torch

from hstvg.objective.codec import CodecTerm
from hstvg.scales import ScaleSchedule
from hstvg.tokenizer.codec import ScaleCodec
from hstvg.tokenizer.quantiser import FSQ
from hstvg.types import Pair, Prediction


def test_unexplained_variance_by_hand(batch):
    """A latent of 1, 3, 5, 7 (variance 20/3); states of 4 everywhere, and of 2 and 6."""
    z = torch.tensor([1.0, 3.0, 5.0, 7.0]).reshape(1, 1, 1, 1, 4)
    coarse = torch.full_like(z, 4.0)
    fine = torch.tensor([2.0, 2.0, 6.0, 6.0]).reshape(1, 1, 1, 1, 4)
    states = (Pair(guess=coarse, target=z), Pair(guess=fine, target=z))
    value = CodecTerm()(Prediction(coarse=states), batch)
    # Squared errors of 5 and 1 over 20/3: 0.75 and 0.15 unexplained.
    assert value.item() == pytest.approx(0.45)


def test_one_minus_the_value_is_the_explained_variance_of_the_codec(batch):
    schedule = ScaleSchedule.of_kind("cubic", (8, 8, 8))
    z = torch.randn(1, 4, *schedule.size, generator=torch.Generator().manual_seed(0))
    z -= z.mean()
    with torch.no_grad():
        states = ScaleCodec(4, schedule, FSQ()).split(z, quantise=False).states
    coarse = tuple(Pair(guess=state, target=z) for state in states[:-1])
    value = CodecTerm()(Prediction(coarse=coarse), batch)
    # White noise pooled by m cells keeps 1/m of its variance: (1/512 + 1/64 + 1/8) / 3.
    assert 1 - value.item() == pytest.approx((1 / 512 + 1 / 64 + 1 / 8) / 3, abs=0.01)
