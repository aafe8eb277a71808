import pytest
import torch

from hstvg.nn.haar_bank import style_statistics
from hstvg.objective.style import StyleTerm
from hstvg.types import Pair, Prediction


def prediction(guess, target, late=True):
    pair = Pair(
        guess=guess[:, None],
        target=target[:, None],
        weight=torch.full((len(guess), 1, 1), float(late)),
    )
    return Prediction(style=pair)


def looks(guess, target, **changes):
    return prediction(style_statistics(guess), style_statistics(target), **changes)


@pytest.fixture
def truth():
    """Bright stripes on dark ground, with a patch that moves."""
    z = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1 - 1
    z[..., ::2] += 0.5
    for frame in range(4):
        z[:, :, frame, 2:5, frame : frame + 3] += 1.5
    return z


def test_values_by_hand(batch):
    made = prediction(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]))
    assert StyleTerm()(made, batch).item() == pytest.approx((1 + 4) / 2)
    assert StyleTerm().trivial(made, batch).item() == pytest.approx(1 / 2)


def test_early_times_cost_nothing(batch, truth):
    early = looks(truth * 3, truth, late=False)
    assert StyleTerm()(early, batch).item() == 0
    assert StyleTerm().trivial(early, batch).item() == 0


def test_other_looks_score_worse_than_the_truth_with_noise(batch, truth):
    """A mean over many clips, one colour, too much contrast, blur, and stripes the other way."""
    noise = 0.03 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    right = StyleTerm()(looks(truth + noise, truth), batch).item()
    mean = truth.mean((2, 3, 4), keepdim=True)
    blurred = (truth + truth.roll(1, 4) + truth.roll(1, 3) + truth.roll((1, 1), (3, 4))) / 4
    wrong = {
        "constant": mean.expand_as(truth),
        "over-saturated": mean + 2 * (truth - mean),
        "blurred": blurred,
        "turned": truth.transpose(3, 4),
        "inverted": -truth,
    }
    for name, clip in wrong.items():
        assert StyleTerm()(looks(clip, truth), batch).item() > 5 * right, name


def test_other_content_of_the_same_look_scores_well(batch, truth):
    moved = truth.roll((2, 2), dims=(3, 4))
    assert StyleTerm()(looks(moved, truth), batch).item() < 1e-6
