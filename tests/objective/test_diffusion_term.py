import pytest
import torch

from hstvg.objective.diffusion import DiffusionTerm
from hstvg.types import Pair, Prediction


def level(error, size, weight=None):
    """Two draws on the path of one clip, at one pyramid level, wrong by `error` everywhere."""
    guess = torch.full((1, 2, 2, *size), 1.0)
    return Pair(guess=guess, target=guess - error, weight=weight)


def test_levels_count_alike_whatever_their_size(batch):
    prediction = Prediction(velocity=(level(1.0, (1, 1, 1)), level(3.0, (2, 4, 4))))
    # (1 + 9) / 2
    assert DiffusionTerm()(prediction, batch).item() == pytest.approx(5.0)


def test_a_velocity_of_zero_is_the_trivial_guess(batch):
    # Of targets 1 - 3 and 1 + 1.
    prediction = Prediction(velocity=(level(3.0, (1, 1, 1)), level(-1.0, (2, 4, 4))))
    assert DiffusionTerm().trivial(prediction, batch).item() == pytest.approx(4.0)


def test_the_draws_of_a_clip_are_averaged(batch):
    guess = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1, 1, 1).expand(1, 2, 2, 2, 2, 2)
    prediction = Prediction(velocity=(Pair(guess=guess, target=torch.zeros_like(guess)),))
    assert DiffusionTerm()(prediction, batch).item() == pytest.approx(5.0)
