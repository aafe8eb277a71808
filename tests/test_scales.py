import inspect

import pytest
import torch

from hstvg.scales import Ladder, Scale, ScaleSchedule, null_space, pool, upsample


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# ---- a ladder ---------------------------------------------------------------------------------


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
    scales = Ladder.cubic(last)
    assert list(scales) == expected
    assert scales.last == last


def test_space_keeps_the_length():
    assert list(Ladder.space((3, 4, 8))) == [(3, 1, 1), (3, 1, 2), (3, 2, 4), (3, 4, 8)]


def test_time_keeps_rows_and_columns():
    assert list(Ladder.time((8, 3, 4))) == [(1, 3, 4), (2, 3, 4), (4, 3, 4), (8, 3, 4)]
    assert list(Ladder.time((6, 2, 2))) == [(3, 2, 2), (6, 2, 2)]


def test_the_last_scale_may_be_repeated():
    assert list(Ladder([(1, 1, 1), (2, 2, 2), (2, 2, 2)]))[1:] == [(2, 2, 2), (2, 2, 2)]


def test_finest_are_the_last_rungs():
    finest = Ladder.cubic((8, 8, 8)).finest(2)
    assert type(finest) is Ladder
    assert list(finest) == [(4, 4, 4), (8, 8, 8)]


@pytest.mark.parametrize("count", [0, 5])
def test_more_or_fewer_scales_than_there_are_is_refused(count):
    with pytest.raises(ValueError, match="4 scales"):
        Ladder.cubic((8, 8, 8)).finest(count)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(1, 1, 1), (3, 1, 1), (8, 2, 2)], "3x1x1 does not divide the last scale 8x2x2"),
        ([(1, 2, 2), (2, 1, 2), (4, 4, 4)], "2x1x2 is smaller than 1x2x2"),
        ([(0, 1, 1), (2, 2, 2)], "0x1x1 does not divide"),
        ([], "at least one scale"),
    ],
)
def test_scales_that_make_no_ladder_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Ladder(sizes)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ((16, 8, 8), [(2, 1, 1), (4, 2, 2), (8, 4, 4), (16, 8, 8)]),
        ((4, 8, 24), [(1, 1, 3), (1, 2, 6), (2, 4, 12), (4, 8, 24)]),
        ((1, 2, 8), [(1, 1, 1), (1, 1, 2), (1, 1, 4), (1, 2, 8)]),
    ],
)
def test_a_resized_ladder_keeps_its_proportions_and_at_least_one_cell(last, expected):
    resized = Ladder.cubic((8, 8, 8)).resized(last)
    assert type(resized) is Ladder
    assert list(resized) == expected


def test_a_ladder_that_would_not_be_whole_is_refused():
    with pytest.raises(ValueError, match="1x1x1 of 8x8x8 has no whole size in 12x8x8"):
        Ladder.cubic((8, 8, 8)).resized((12, 8, 8))


def test_a_scale_knows_its_volume_and_name():
    assert Scale(2, 3, 4).volume == 24
    assert str(Scale(2, 3, 4)) == "2x3x4"


def test_a_scale_divides_axis_by_axis():
    assert Scale(1, 2, 3).divides(Scale(5, 4, 3))
    assert not Scale(2, 2, 3).divides(Scale(5, 4, 3))


# ---- a schedule -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "first_alone", "expected"),
    [
        ("cubic", (4, 4, 2), False, "1x1x1 2x2x1 4x4x2"),
        ("space", (4, 4, 2), False, "4x1x1 4x2x1 4x4x2"),
        ("frames", (3, 2, 2), False, "1x1x1 1x2x2 | 1x1x1 1x2x2 | 1x1x1 1x2x2"),
        ("cubic", (5, 4, 4), True, "1x1x1 1x2x2 1x4x4 | 1x1x1 2x2x2 4x4x4"),
        ("space", (3, 4, 4), True, "1x1x1 1x2x2 1x4x4 | 2x1x1 2x2x2 2x4x4"),
        ("frames", (2, 2, 2), True, "1x1x1 1x2x2 | 1x1x1 1x2x2"),
        ("cubic", (1, 4, 4), True, "1x1x1 1x2x2 1x4x4"),
        ("space", (1, 2, 2), True, "1x1x1 1x2x2"),
    ],
)
def test_segments_of_every_kind(kind, size, first_alone, expected):
    schedule = ScaleSchedule.of_kind(kind, size, first_alone=first_alone)
    assert str(schedule) == expected
    assert schedule.size == size
    assert all(type(ladder) is Ladder for ladder in schedule)


def test_an_unknown_kind_is_refused():
    """Also where nobody checks types, as under a config."""
    of_kind = inspect.unwrap(ScaleSchedule.of_kind.__func__)
    with pytest.raises(ValueError, match="schedule=cubik: choose from cubic, space, frames"):
        of_kind(ScaleSchedule, "cubik", (2, 2, 2))


def test_the_rungs_of_segments_of_two_ladders():
    """An image and, after it, four frames: two kinds of ladder, each with rungs of its own."""
    rungs = ScaleSchedule.of_kind("cubic", (5, 4, 4), first_alone=True).rungs
    assert [rung.scale for rung in rungs] == [
        *[(1, 1, 1), (1, 2, 2), (1, 4, 4)],
        *[(1, 1, 1), (2, 2, 2), (4, 4, 4)],
    ]
    assert [rung.depth for rung in rungs] == [0, 1, 2, 0, 1, 2]
    assert [rung.kind for rung in rungs] == [0, 1, 2, 3, 4, 5]
    assert [rung.segment for rung in rungs] == [0, 0, 0, 1, 1, 1]
    assert [rung.start for rung in rungs] == [0, 0, 0, 1, 1, 1]
    assert [rung.frames for rung in rungs] == [*[slice(0, 1)] * 3, *[slice(1, 5)] * 3]
    assert [rung.size for rung in rungs] == [*[(1, 4, 4)] * 3, *[(4, 4, 4)] * 3]


def test_segments_of_one_ladder_share_their_kinds():
    schedule = ScaleSchedule.of_kind("frames", (3, 2, 2))
    assert [rung.kind for rung in schedule.rungs] == [0, 1, 0, 1, 0, 1]
    assert [rung.start for rung in schedule.rungs] == [0, 0, 1, 1, 2, 2]
    assert [rung.segment for rung in schedule.rungs] == [0, 0, 1, 1, 2, 2]
    assert len(schedule.ladders) == 1
    mixed = ScaleSchedule([schedule[0], [(2, 2, 2)], schedule[0]])
    assert [rung.kind for rung in mixed.rungs] == [0, 1, 2, 0, 1]
    assert [rung.start for rung in mixed.rungs] == [0, 0, 1, 3, 3]
    assert mixed.num_levels == 2
    assert mixed.size == (4, 2, 2)


def test_a_repeated_scale_is_a_rung_of_its_own_kind():
    rungs = ScaleSchedule([[(1, 1, 1), (2, 2, 2), (2, 2, 2)]]).rungs
    assert [rung.kind for rung in rungs] == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "size", "first_alone", "other", "expected"),
    [
        ("cubic", (4, 4, 4), False, (8, 4, 4), "2x1x1 4x2x2 8x4x4"),
        ("cubic", (4, 4, 4), False, (2, 4, 8), "1x1x2 1x2x4 2x4x8"),
        ("space", (4, 4, 4), False, (3, 2, 2), "3x1x1 3x1x1 3x2x2"),
        ("frames", (2, 2, 2), False, (3, 2, 4), "1x1x2 1x2x4 | 1x1x2 1x2x4 | 1x1x2 1x2x4"),
        ("cubic", (3, 2, 2), True, (1, 2, 2), "1x1x1 1x2x2"),
        ("cubic", (3, 2, 2), True, (5, 2, 2), "1x1x1 1x2x2 | 1x1x1 2x2x2 | 1x1x1 2x2x2"),
        ("cubic", (3, 2, 2), True, (3, 4, 2), "1x2x1 1x4x2 | 1x2x1 2x4x2"),
    ],
)
def test_resized(kind, size, first_alone, other, expected):
    schedule = ScaleSchedule.of_kind(kind, size, first_alone=first_alone)
    resized = schedule.resized(other)
    assert str(resized) == expected
    assert resized.size == other
    known = {(rung.kind, rung.depth) for rung in schedule.rungs}
    assert {(rung.kind, rung.depth) for rung in resized.rungs} <= known


def test_resized_to_its_own_size_is_itself():
    schedule = ScaleSchedule([[(1, 2, 2)], [(1, 1, 1), (2, 2, 2)], [(4, 2, 2)]])
    assert schedule.resized(torch.Size((7, 2, 2))) is schedule


@pytest.mark.parametrize("frames", [2, 4, 6])
def test_frames_that_are_no_whole_segments_are_refused(frames):
    schedule = ScaleSchedule.of_kind("cubic", (5, 2, 2), first_alone=True)
    with pytest.raises(ValueError, match=f"{frames} latent frames are not 1 and whole segments of"):
        schedule.resized((frames, 2, 2))


def test_a_segment_that_would_not_be_whole_is_refused():
    schedule = ScaleSchedule.of_kind("cubic", (3, 2, 2), first_alone=True)
    with pytest.raises(ValueError, match="has no whole size in 1x3x2"):
        schedule.resized((3, 3, 2))


@pytest.mark.parametrize(
    "segments",
    [
        # The middle one has no place in another size, and the kinds of the last would shift.
        [[(1, 4, 4)], [(1, 1, 1), (1, 4, 4)], [(1, 2, 2), (1, 4, 4)]],
        # Of half the size both are 1x1x1 1x2x2, and nobody could tell whose weights are meant.
        [[(1, 1, 1), (1, 4, 4)], [(1, 2, 2), (1, 4, 4)]],
    ],
)
def test_segments_whose_kinds_would_be_confused_are_not_resized(segments):
    schedule = ScaleSchedule(segments)
    with pytest.raises(ValueError, match="has no kinds of rung for a latent of 2x2x2"):
        schedule.resized((2, 2, 2))


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([], "at least one segment"),
        ([[(1, 1, 1)], []], "at least one scale"),
        ([[(1, 2, 2)], [(2, 2, 4)]], "segments end at 1x2x2 and 2x2x4: two sizes"),
        ([[(1, 2, 2)], [(3, 2, 2), (4, 2, 2)]], "3x2x2 does not divide"),
    ],
)
def test_segments_that_make_no_schedule_are_refused(segments, message):
    with pytest.raises(ValueError, match=message):
        ScaleSchedule(segments)


# ---- pooling and upsampling -------------------------------------------------------------------


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
