import pytest
import torch

from hstvg.objective.commitment import CommitmentTerm
from hstvg.types import Pair, Prediction


def latent(*values):
    return torch.tensor(values).reshape(1, 1, 1, 1, -1)


def test_squared_distance_from_the_codes_by_hand(batch):
    """0.5, 1.5 and -1 against what five values of whole numbers can say: 0, 2 and -1."""
    pair = Pair(guess=latent(0.5, 1.5, -1.0), target=latent(0.0, 2.0, -1.0))
    value = CommitmentTerm()(Prediction(commitment=pair), batch)
    assert value.shape == (1,)
    assert value.item() == pytest.approx((0.25 + 0.25) / 3)


def test_it_pulls_the_latent_and_leaves_the_codes(batch):
    z, coded = latent(0.5, -1.0).requires_grad_(), latent(0.0, -1.5).requires_grad_()
    CommitmentTerm()(Prediction(commitment=Pair(guess=z, target=coded)), batch).sum().backward()
    assert z.grad.flatten().tolist() == pytest.approx([0.5, 0.5])
    assert coded.grad is None
