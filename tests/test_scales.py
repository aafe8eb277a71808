import pytest
import torch

from hstvg.scales import Scale, ScaleSchedule, null_space, pool, upsample


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ((8, 8, 8), [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8)]),
        ((2, 8, 4), [(1, 1, 1), (1, 2, 1), (1, 4, 2), (2, 8, 4)]),
        ((3, 4, 6), [(3, 1, 3), (3, 2, 3), (3, 4, 6)]),
        ((12, 2, 1), [(3, 1, 1), (6, 1, 1), (12, 2, 1)]),
        ((5, 7, 9), [(5, 7, 9)]),
    ],
)
def test_cubic_halves_what_stays_whole(last, expected):
    scales = ScaleSchedule.cubic(last)
    assert list(scales) == expected
    assert scales.last == last


def test_finest_are_the_last_rungs():
    assert list(ScaleSchedule.cubic((8, 8, 8)).finest(2)) == [(4, 4, 4), (8, 8, 8)]


@pytest.mark.parametrize("count", [0, 5])
def test_more_or_fewer_scales_than_there_are_is_refused(count):
    with pytest.raises(ValueError, match="4 scales"):
        ScaleSchedule.cubic((8, 8, 8)).finest(count)


def test_a_scale_that_does_not_divide_the_last_is_refused():
    with pytest.raises(ValueError, match="3x1x1 does not divide the last scale 8x2x2"):
        ScaleSchedule([(1, 1, 1), (3, 1, 1), (8, 2, 2)])


def test_a_shrinking_axis_is_refused():
    with pytest.raises(ValueError, match="2x1x2 is smaller than 1x2x2"):
        ScaleSchedule([(1, 2, 2), (2, 1, 2), (4, 4, 4)])


def test_a_scale_knows_its_volume_and_name():
    assert Scale(2, 3, 4).volume == 24
    assert str(Scale(2, 3, 4)) == "2x3x4"


def test_pool_is_the_mean_and_upsample_repeats():
    x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    assert pool(x, Scale(1, 1, 1)).item() == 3.5
    assert pool(x, Scale(2, 1, 1)).flatten().tolist() == [1.5, 5.5]
    row = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 1, 2)
    assert upsample(row, Scale(1, 1, 4)).flatten().tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("fine", [(4, 4, 8), (8, 4, 4), (2, 4, 4)])
def test_pool_undoes_upsample_exactly(fine):
    x = noise(2, 3, 2, 4, 4)
    assert torch.equal(pool(upsample(x, Scale(*fine)), Scale(2, 4, 4)), x)


def test_pool_undoes_upsample_by_three_up_to_rounding():
    x = noise(2, 3, 2, 2, 2)
    assert torch.allclose(pool(upsample(x, Scale(6, 2, 6)), Scale(2, 2, 2)), x, atol=1e-6)


@pytest.mark.parametrize("coarse", [(1, 1, 1), (2, 2, 2), (4, 1, 2)])
def test_pooling_cannot_see_the_null_space(coarse):
    x = noise(2, 3, 4, 4, 4)
    hidden, scale = null_space(x, Scale(*coarse)), Scale(*coarse)
    assert pool(hidden, scale).abs().max() < 1e-6
    assert torch.allclose(hidden + upsample(pool(x, scale), Scale(4, 4, 4)), x, atol=1e-6)
    assert torch.allclose(null_space(hidden, scale), hidden, atol=1e-6)
