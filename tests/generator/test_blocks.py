from hstvg.generator.blocks import blocks_of
from hstvg.scales import ScaleSchedule


def shown(blocks):
    return [
        (tuple(block.size), block.start, block.span, block.number if block.rung else "given")
        for block in blocks
    ]


def test_one_segment_is_its_rungs():
    blocks = blocks_of(ScaleSchedule.of_kind("cubic", (2, 4, 4)))
    assert shown(blocks) == [
        ((1, 1, 1), 0, 2, 0),
        ((1, 2, 2), 0, 2, 1),
        ((2, 4, 4), 0, 2, 2),
    ]


def test_given_frames_come_first():
    blocks = blocks_of(ScaleSchedule.of_kind("space", (4, 2, 2)), context_frames=2)
    assert shown(blocks) == [
        ((2, 2, 2), 0, 2, "given"),
        ((4, 1, 1), 0, 4, 0),
        ((4, 2, 2), 0, 4, 1),
    ]


def test_every_finished_segment_is_read_but_the_last():
    blocks = blocks_of(ScaleSchedule.of_kind("frames", (3, 2, 2)), context_frames=1)
    assert shown(blocks) == [
        ((1, 1, 1), 0, 1, 0),
        ((1, 2, 2), 0, 1, 1),
        ((1, 2, 2), 0, 1, "given"),
        ((1, 1, 1), 1, 1, 2),
        ((1, 2, 2), 1, 1, 3),
        ((1, 2, 2), 1, 1, "given"),
        ((1, 1, 1), 2, 1, 4),
        ((1, 2, 2), 2, 1, 5),
    ]


def test_a_first_frame_alone_is_read_by_the_clip_after_it():
    blocks = blocks_of(ScaleSchedule.of_kind("cubic", (5, 2, 2), first_alone=True))
    assert [block[0] for block in shown(blocks)] == [
        (1, 1, 1),
        (1, 2, 2),
        (1, 2, 2),
        (1, 1, 1),
        (2, 1, 1),
        (4, 2, 2),
    ]
