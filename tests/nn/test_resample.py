from math import sqrt

import pytest
import torch

from hstvg.nn.resample import Down, Factor, Up, from_depth, haar, to_depth

FACTORS = [Factor(2, 2, 2), Factor(1, 2, 2), Factor(2, 1, 1), Factor(2, 4, 1), Factor(1, 1, 1)]


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_to_depth_by_hand():
    x = torch.arange(8.0).reshape(1, 1, 1, 2, 4)  # rows 0 1 2 3 and 4 5 6 7
    folded = to_depth(x, Factor(1, 2, 2))
    assert folded.shape == (1, 4, 1, 1, 2)
    assert folded[0, :, 0, 0, 0].tolist() == [0, 1, 4, 5]
    assert folded[0, :, 0, 0, 1].tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize("factor", FACTORS)
def test_depth_round_trip(factor):
    x = noise(2, 3, 4, 4, 8)
    folded = to_depth(x, factor)
    assert folded.shape == (2, 3 * factor.volume, 4 // factor.t, 4 // factor.h, 8 // factor.w)
    assert torch.equal(from_depth(folded, factor), x)


@pytest.mark.parametrize("factor", FACTORS)
def test_down_and_up_change_shape_by_the_factor(factor):
    x = noise(2, 3, 4, 4, 8)
    small = Down(3, 5, factor)(x)
    assert small.shape == (2, 5, 4 // factor.t, 4 // factor.h, 8 // factor.w)
    assert Up(5, 3, factor)(small).shape == x.shape


def test_blocks_do_not_overlap():
    torch.manual_seed(0)
    down, x = Down(3, 5, Factor(2, 2, 2)), noise(1, 3, 4, 4, 4)
    changed = x.clone()
    changed[:, :, 2:, 2:, :2] += 1
    differing = (down(x) != down(changed)).any(1)[0]
    assert differing.nonzero().tolist() == [[1, 1, 0]]


# ---- the Haar wavelet -------------------------------------------------------------------------

HAAR_FACTORS = [factor for factor in FACTORS if max(factor) <= 2]


@pytest.mark.parametrize("factor", HAAR_FACTORS)
def test_haar_is_its_own_inverse(factor):
    x = noise(2, 3 * factor.volume, 2, 3, 4)
    assert torch.allclose(haar(haar(x, factor), factor), x, atol=1e-6)


@pytest.mark.parametrize("factor", HAAR_FACTORS)
def test_haar_is_orthonormal(factor):
    """Its rows are the coefficients of one cell each."""
    cells = torch.eye(factor.volume).view(factor.volume, factor.volume, 1, 1, 1)
    rows = haar(cells, factor).flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(factor.volume), atol=1e-6)


def test_haar_by_hand():
    """Of the block 1 2 / 3 6: half the sum, and half of what columns, rows and diagonals differ."""
    block = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 4, 1, 1, 1)
    expected = [6.0, -2.0, -3.0, 1.0]
    assert haar(block, Factor(1, 2, 2)).flatten().tolist() == pytest.approx(expected)
    pair = torch.tensor([5.0, 1.0]).view(1, 2, 1, 1, 1)
    halves = [6 / sqrt(2), 4 / sqrt(2)]
    assert haar(pair, Factor(2, 1, 1)).flatten().tolist() == pytest.approx(halves)


def test_haar_keeps_channels_and_places_apart():
    x = noise(1, 3 * 8, 2, 2, 2)
    changed = x.clone()
    changed[0, 9, 1, 0, 1] += 1  # of the second channel
    differing = (haar(x, Factor(2, 2, 2)) != haar(changed, Factor(2, 2, 2)))[0].nonzero().tolist()
    assert differing == [[coefficient, 1, 0, 1] for coefficient in range(8, 16)]


def test_a_flat_block_has_one_coefficient():
    flat = haar(torch.ones(1, 8, 1, 1, 1), Factor(2, 2, 2)).flatten()
    assert flat[0].item() == pytest.approx(sqrt(8))
    assert flat[1:].abs().max() < 1e-6
