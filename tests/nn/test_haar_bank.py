import math

import pytest
import torch

from hstvg.nn.haar_bank import FLOOR, haar_bands, num_levels, num_statistics, style_statistics
from hstvg.nn.resample import Factor


def test_an_even_clip_has_its_value_and_no_detail():
    (found,) = style_statistics(torch.full((1, 1, 2, 8, 8), 3.0))
    assert found[0] == 3
    assert torch.allclose(found[1:], torch.full((7,), math.log(FLOOR)), atol=1e-3)


def test_stripes_are_detail_of_one_direction():
    """Columns of +2 and -2: mean 0, deviation 2, and all of it in the band of columns."""
    z = torch.tensor([2.0, -2.0]).repeat(4).expand(1, 1, 3, 8, 8).clone()
    (found,) = style_statistics(z)
    mean, deviation, *bands = found.tolist()
    assert mean == pytest.approx(0, abs=1e-6)
    assert deviation == pytest.approx(math.log(2), abs=1e-3)
    floor = math.log(FLOOR)
    # Columns, rows, diagonal: log mean |Phi|, then log std, 0 since every pair falls by as much.
    expected = [math.log(2 + FLOOR), floor, floor, floor, floor, floor]
    assert bands == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("size", "levels"), [(2, 1), (4, 1), (8, 1), (16, 2), (32, 3), (64, 3)])
def test_as_many_levels_as_leave_bands_with_cells(size, levels):
    assert num_levels(size, size + 3) == levels
    z = torch.randn(2, 3, 2, size, size + 3)
    assert style_statistics(z).shape == (2, num_statistics(3, size, size + 3))


def test_what_is_shown_may_move():
    z = torch.randn(2, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    shifted = z.roll((4, 8), dims=(3, 4))  # by whole blocks of both levels
    assert torch.allclose(style_statistics(shifted), style_statistics(z), atol=1e-5)
    assert torch.allclose(style_statistics(z.flip(2)), style_statistics(z), atol=1e-5)


def test_a_clip_has_the_same_statistics_in_any_batch():
    z = torch.randn(4, 2, 2, 8, 8)
    assert torch.equal(style_statistics(z)[1:2], style_statistics(z[1:2]))


def test_gradients_are_finite_where_nothing_is_seen():
    z = torch.zeros(1, 2, 2, 8, 8, requires_grad=True)
    style_statistics(z).square().sum().backward()
    assert torch.isfinite(z.grad).all()


def test_half_precision_is_measured_in_full():
    z = torch.randn(1, 2, 2, 8, 8).bfloat16()
    assert torch.equal(style_statistics(z), style_statistics(z.float()))


def test_bands_keep_the_energy_and_odd_axes_are_padded():
    x = torch.randn(2, 3, 3, 5, 4)
    bands = haar_bands(x, Factor(2, 2, 2))
    assert bands.shape == (2, 3, 8, 2, 3, 2)
    even = x[:, :, 1:, 1:]
    assert haar_bands(even, Factor(2, 2, 2)).norm() == pytest.approx(float(even.norm()), rel=1e-5)
