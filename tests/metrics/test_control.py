from dataclasses import replace

import numpy as np
import pytest

from hstvg.data.decode import decode_window
from hstvg.data.shapes import render, sample_scene
from hstvg.data.video import encode_video
from hstvg.metrics.control import CHANCE, ControlAccuracy, judge_clip
from hstvg.scene.grammar import COLOURS, STYLES, read_caption, write_caption
from hstvg.types import Metric

SIZE = {"num_frames": 16, "fps": 8.0, "height": 32, "width": 32}


def real_clips(seeds, **kinds):
    """Rendered clips as they come out of a shard, after H.264, and their captions."""
    scenes = [sample_scene(seed, style_fraction=0.0, **kinds) for seed in seeds]
    videos = [encode_video(render(scene, **SIZE).pixels, 8.0) for scene in scenes]
    clips = [decode_window(video, start_s=0.0, **SIZE) for video in videos]
    return clips, [write_caption(scene) for scene in scenes]


def measure(clips, captions):
    found = ControlAccuracy.empty().update(generated=clips, captions=captions, fps=8.0)
    return {name: estimate.value for name, estimate in found.compute().items()}


@pytest.fixture(scope="module")
def single():
    return real_clips(range(300), max_shapes=1, camera_fraction=0.0)


def test_real_clips_are_judged_right(single):
    found = measure(*single)
    assert found["colour"] >= 0.98
    assert found["shape"] >= 0.95
    assert found["motion"] >= 0.98


def test_with_other_captions_the_same_clips_are_at_chance(single):
    clips, captions = single
    found = measure(clips, captions[1:] + captions[:1])
    for name, chance in CHANCE.items():
        assert abs(found[name] - chance) < 0.09


def test_a_frozen_clip_shows_no_motion(single):
    clips, captions = single
    frozen = [np.repeat(clip[:1], len(clip), axis=0) for clip in clips]
    found = measure(frozen, captions)
    assert found["motion"] < 0.2
    assert found["colour"] > 0.9


def test_an_empty_picture_has_nothing_right(single):
    _, captions = single
    dark = np.full((16, 32, 32, 3), 20, np.uint8)
    assert set(measure([dark] * 20, captions[:20]).values()) == {0.0}


def test_motion_is_judged_in_the_world_when_the_camera_pans():
    found = measure(*real_clips(range(60), max_shapes=1, camera_fraction=1.0))
    assert min(found.values()) >= 0.95


def test_several_objects_are_told_apart():
    found = measure(*real_clips(range(100), camera_fraction=0.0))
    assert found["colour"] >= 0.98
    assert found["shape"] >= 0.92
    assert found["motion"] >= 0.97


@pytest.mark.parametrize("colour", COLOURS)
def test_a_wrong_colour_is_wrong_and_not_missing(colour):
    scene = sample_scene(0, max_shapes=1, camera_fraction=0.0, style_fraction=0.0)
    thing = scene.objects[0]
    shown = scene.model_copy(update={"objects": (thing.model_copy(update={"colour": colour}),)})
    other = "white" if colour != "white" else "red"
    asked = write_caption(shown).replace(colour, other)
    (verdict,) = judge_clip(render(shown, **SIZE).pixels, read_caption(asked), fps=8.0)
    assert verdict.colour == colour
    assert not verdict.is_right("colour")
    assert verdict.is_right("shape")
    assert verdict.is_right("motion")


def in_style(style, seeds, **kinds):
    scenes = [sample_scene(seed, **kinds).model_copy(update={"style": style}) for seed in seeds]
    videos = [encode_video(render(scene, **SIZE).pixels, 8.0) for scene in scenes]
    clips = [decode_window(video, start_s=0.0, **SIZE) for video in videos]
    return clips, [write_caption(scene) for scene in scenes]


@pytest.mark.parametrize("style", STYLES)
def test_content_is_read_in_every_style(style):
    found = measure(*in_style(style, range(40), max_shapes=1))
    assert found["colour"] >= 0.92
    assert found["shape"] >= 0.88
    assert found["motion"] >= 0.97


def test_several_blurred_objects_are_skipped():
    two = read_caption("a red circle moves right and a blue square moves up, in blur style")
    (clip,), _ = in_style("blur", [0])
    assert judge_clip(clip, two) == ()
    assert len(judge_clip(clip, replace(two, style="plain"))) == 2


def test_a_tint_is_taken_back_before_colours_are_judged():
    frames = np.full((4, 32, 32, 3), (57, 34, 9), np.uint8)
    frames[:, 10:20, 10:20] = (255, 196, 102)  # white, in warm style
    seen = judge_clip(frames, read_caption("a white square moves still, in warm style"))
    assert [seen[0].colour, seen[0].shape, seen[0].motion] == ["white", "square", "still"]


def test_merging_equals_the_union(single):
    clips, captions = single
    empty = ControlAccuracy.empty()
    whole = empty.update(generated=clips[:20], captions=captions[:20], fps=8.0)
    first = empty.update(generated=clips[:7], captions=captions[:7], fps=8.0)
    second = empty.update(generated=np.stack(clips[7:20]), captions=captions[7:20], fps=8.0)
    assert first.merge(second) == whole == second.merge(first)
    assert whole.compute()["colour"].n == 20


def test_it_is_a_metric_and_empty_has_nothing_to_say():
    assert isinstance(ControlAccuracy.empty(), Metric)
    assert ControlAccuracy.empty().compute() == {}
