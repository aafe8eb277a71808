import pytest
import torch

from hstvg.objective.reconstruction import ReconstructionTerm
from hstvg.types import Pair, Prediction


def value(difference, epsilon, batch):
    target = torch.full((1, 3, 1, 1, 1), 0.25)
    prediction = Prediction(pixels=Pair(guess=target + difference, target=target))
    return ReconstructionTerm(epsilon)(prediction, batch).item()


def test_charbonnier_by_hand(batch):
    # sqrt(0.3^2 + 0.4^2) - 0.4
    assert value(0.3, 0.4, batch) == pytest.approx(0.1, abs=1e-6)
    assert value(-0.3, 0.4, batch) == pytest.approx(0.1, abs=1e-6)


def test_it_is_quadratic_below_and_absolute_above(batch):
    assert value(0.01, 1.0, batch) == pytest.approx(0.01**2 / 2, rel=1e-2)
    assert value(1.0, 1e-4, batch) == pytest.approx(1.0, abs=1e-3)
