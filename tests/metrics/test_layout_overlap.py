from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hstvg.data.shapes import render, sample_scene
from hstvg.metrics.layout import LayoutOverlap, area, box_of, iou, judge_places
from hstvg.scene.grammar import write_caption
from hstvg.scene.layout import places
from hstvg.types import Metric

FRAMES, FPS, SIDE = 8, 8.0, 64


def shown(seed, **kinds):
    """A clip, its caption and where its objects are."""
    scene = sample_scene(seed, style_fraction=0.0, **kinds)
    clip = render(scene, num_frames=FRAMES, fps=FPS, height=SIDE, width=SIDE).pixels
    return clip, write_caption(scene), places(scene, np.arange(FRAMES) / FPS)


def measured(clips, captions, layouts):
    found = LayoutOverlap.empty().update(generated=clips, captions=captions, layouts=layouts)
    return found.compute()["layout"]


@pytest.fixture(scope="module")
def single():
    return list(zip(*(shown(seed, max_shapes=1) for seed in range(60)), strict=True))


def test_overlaps_by_hand():
    left, right = np.array([0.0, 0.0, 0.5, 1.0]), np.array([0.25, 0.0, 0.75, 1.0])
    assert iou(left, left) == 1
    assert iou(left, right) == pytest.approx(1 / 3)
    assert iou(left, 1 - left[[2, 3, 0, 1]]) == 0
    assert iou(left, np.zeros(4)) == 0
    assert area(np.array([0.5, 0.5, 0.25, 1.0])) == 0


def test_a_box_holds_what_is_solid():
    mask = np.zeros((4, 8))
    mask[1:3, 2:4] = 1.0
    mask[0] = 0.4
    assert box_of(mask).tolist() == [0.25, 0.25, 0.5, 0.75]
    assert not box_of(np.full((4, 8), 0.4)).any()


def test_real_clips_are_where_their_scenes_have_them(single):
    assert measured(*single).value > 0.9
    several = list(zip(*(shown(seed, max_shapes=3) for seed in range(60)), strict=True))
    assert measured(*several).value > 0.8


def test_cheats_score_worse(single):
    clips, captions, layouts = single
    truth = measured(clips, captions, layouts).value
    frozen = [np.repeat(clip[:1], FRAMES, axis=0) for clip in clips]
    mirrored = [clip[:, :, ::-1] for clip in clips]
    empty = [np.full_like(clip, 20) for clip in clips]
    others = [replace(one, boxes=two.boxes) for one, two in pairwise(layouts)]
    assert measured(frozen, captions, layouts).value < truth - 0.2
    assert measured(mirrored, captions, layouts).value < truth - 0.3
    assert measured(clips[:-1], captions[:-1], others).value < 0.4
    assert measured(empty, captions, layouts).value == 0


def test_what_is_off_screen_is_not_looked_for(single):
    clip, caption, layout = (part[0] for part in single)
    assert judge_places(clip, caption, replace(layout, boxes=layout.boxes + 3)) == []
    assert LayoutOverlap.empty().compute() == {}


def test_parts_together_are_the_whole(single):
    half = len(single[0]) // 2
    whole = measured(*single)
    one, two = (
        LayoutOverlap.empty().update(generated=clips, captions=captions, layouts=layouts)
        for clips, captions, layouts in (
            [part[:half] for part in single],
            [part[half:] for part in single],
        )
    )
    assert isinstance(one, Metric)
    assert one.merge(two).compute()["layout"] == whole
