import math

import pytest
import torch

from hstvg.objective.wavelet import WaveletTerm
from hstvg.types import Pair, Prediction

ONE = 2 * math.sqrt(2)
"""The coefficient of a 2x2x2 block of ones: 8 / sqrt(8)."""


def value(error, batch, levels=1):
    target = torch.full_like(error, 0.25)
    prediction = Prediction(pixels=Pair(guess=target + error, target=target))
    return WaveletTerm(levels)(prediction, batch).item()


def test_a_constant_error_lies_in_the_low_pass_alone(batch):
    error = torch.full((1, 3, 4, 4, 4), 0.1)
    # One coefficient of 0.1 * 2 sqrt(2) in each block of eight.
    assert value(error, batch) == pytest.approx(0.1 * ONE / 8)
    # Twice: one of 0.1 * 8 in each 64.
    assert value(error, batch, levels=2) == pytest.approx(0.1 / 8)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_stripe_along_any_axis_is_one_coefficient_of_detail(axis, batch):
    shape = [1, 1, 1, 1, 1]
    shape[axis] = 4
    error = (0.1 * torch.tensor([1.0, -1.0, 1.0, -1.0])).view(shape).expand(1, 3, 4, 4, 4)
    assert value(error, batch) == pytest.approx(0.1 * ONE / 8)
    # Nothing of it is left to transform again.
    assert value(error, batch, levels=2) == pytest.approx(0.1 * ONE / 8)


def test_a_single_wrong_pixel_is_in_all_coefficients_of_its_block(batch):
    error = torch.zeros(1, 1, 2, 2, 2)
    error[..., 1, 0, 1] = 1.0
    # Eight coefficients of 1 / sqrt(8) each.
    assert value(error, batch) == pytest.approx(1 / math.sqrt(8))


def test_a_first_frame_of_its_own_counts_as_a_still_pair(batch):
    error = torch.zeros(1, 3, 3, 2, 2)
    error[:, :, 0] = 0.1
    assert value(error, batch) == pytest.approx(0.1 * ONE / 8 / 2)
    assert value(error[:, :, :1], batch) == pytest.approx(0.1 * ONE / 8)


def test_no_level_is_refused():
    with pytest.raises(ValueError, match="levels=0"):
        WaveletTerm(0)
