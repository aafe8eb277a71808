import pytest
import torch

from hstvg.objective.flow import FlowTerm
from hstvg.types import Pair, Prediction


def level(error, size, weight=None):
    """Two draws on the path of one clip, at one pyramid level, wrong by `error` everywhere."""
    guess = torch.full((1, 2, 2, *size), 1.0)
    return Pair(guess=guess, target=guess - error, weight=weight)


def test_levels_count_alike_whatever_their_size(batch):
    prediction = Prediction(motion=(level(1.0, (1, 1, 1)), level(3.0, (2, 4, 4))))
    # (1 + 9) / 2
    assert FlowTerm()(prediction, batch).item() == pytest.approx(5.0)


def test_the_draws_of_a_clip_are_averaged(batch):
    guess = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1, 1, 1).expand(1, 2, 2, 2, 2, 2)
    prediction = Prediction(motion=(Pair(guess=guess, target=torch.zeros_like(guess)),))
    assert FlowTerm()(prediction, batch).item() == pytest.approx(5.0)


def test_untrusted_cells_do_not_count(batch):
    trust = torch.tensor([1.0, 0.25, 0.0, 0.0]).reshape(1, 1, 1, 1, 2, 2)
    wrong = torch.tensor([1.0, 3.0, 100.0, 100.0]).reshape(1, 1, 1, 1, 2, 2)
    guess = wrong.expand(1, 3, 2, 1, 2, 2)
    pair = Pair(guess=guess, target=torch.zeros_like(guess), weight=trust)
    # (1 * 1 + 0.25 * 9) / 1.25
    assert FlowTerm()(Prediction(motion=(pair,)), batch).item() == pytest.approx(2.6)


def test_no_motion_at_all_is_the_trivial_guess(batch):
    """What nobody trusts is not in it; levels count alike."""
    trust = torch.tensor([1.0, 0.25, 0.0, 0.0]).reshape(1, 1, 1, 1, 2, 2)
    target = torch.tensor([1.0, 3.0, 100.0, 100.0]).reshape(1, 1, 1, 1, 2, 2)
    pair = Pair(guess=torch.ones_like(target), target=target, weight=trust)
    coarse = level(-1.0, (1, 1, 1))
    # (1 * 1 + 0.25 * 9) / 1.25 and (1 + 1)^2
    prediction = Prediction(motion=(pair, coarse))
    assert FlowTerm().trivial(prediction, batch).item() == pytest.approx((2.6 + 4) / 2)


def test_a_clip_without_known_motion_costs_nothing(batch):
    blind = level(3.0, (2, 2, 2), weight=torch.zeros(1, 1, 1, 2, 2, 2))
    assert FlowTerm()(Prediction(motion=(blind,)), batch).item() == 0
