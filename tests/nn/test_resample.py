import pytest
import torch

from hstvg.nn.resample import Down, Factor, Up, from_depth, to_depth

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
