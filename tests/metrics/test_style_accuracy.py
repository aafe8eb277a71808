"""The judge of styles: right on real clips, and on pictures that are made by hand."""

from functools import lru_cache

import numpy as np
import pytest

from hstvg.data.decode import decode_window
from hstvg.data.shapes import render, sample_scene
from hstvg.data.video import encode_video
from hstvg.metrics.style import StyleAccuracy, find_style
from hstvg.scene.grammar import STYLES
from hstvg.types import Metric


@lru_cache
def real_clips(size: int, count: int = 8):
    """`count` clips per style as they come out of a shard, after H.264, and their styles."""
    shape = {"num_frames": 16, "fps": 8.0, "height": size, "width": size}
    clips, styles = [], []
    for number in range(count * len(STYLES)):
        style = STYLES[number % len(STYLES)]
        scene = sample_scene(number).model_copy(update={"style": style})
        video = encode_video(render(scene, **shape).pixels, 8.0)
        clips.append(decode_window(video, start_s=0.0, **shape))
        styles.append(style)
    return clips, styles


def measure(clips, styles):
    return StyleAccuracy.empty().update(generated=clips, styles=styles).compute()["style"]


@pytest.mark.parametrize("size", [32, 64])
def test_real_clips_are_judged_right(size):
    found = measure(*real_clips(size))
    assert found.value >= 0.95
    assert found.n == 64


def test_one_answer_for_every_clip_is_at_chance():
    clips, styles = real_clips(32)
    assert measure([clips[0]] * len(styles), styles).value == 1 / 8


def picture(background, square=(255, 0, 0)):
    frames = np.full((4, 32, 32, 3), background, np.uint8)
    frames[:, 10:20, 10:20] = square
    return frames


@pytest.mark.parametrize(
    ("background", "square", "style"),
    [
        ((23, 23, 23), (255, 0, 0), "plain"),
        ((232, 232, 232), (0, 255, 255), "invert"),
        ((57, 34, 9), (255, 18, 0), "warm"),
        ((9, 34, 57), (0, 18, 255), "cool"),
        ((64, 64, 64), (0, 191, 0), "posterise"),
    ],
)
def test_a_square_on_the_background_of_a_style(background, square, style):
    assert find_style(picture(background, square)) == style


def test_stripes_are_seen_wherever_they_begin():
    y, x = np.mgrid[:32, :32]
    for begin in (0.0, 0.3, 0.5):
        dark = ((x + y) * 6 / 32 + begin) % 1.0 >= 0.5
        frames = (picture((23, 23, 23)) * np.where(dark, 0.4, 1.0)[..., None]).astype(np.uint8)
        assert find_style(frames) == "stripes"


def test_grain_and_soft_edges_by_hand():
    noise = np.random.default_rng(0).normal(0.0, 31.0, (32, 32, 3))
    assert find_style((picture(23) + noise).clip(0, 255).astype(np.uint8)) == "noise"
    soft = picture(23).astype(float)
    for axis in (1, 2, 1, 2):
        soft = (np.roll(soft, 1, axis) + soft + np.roll(soft, -1, axis)) / 3
    assert find_style(soft.astype(np.uint8)) == "blur"


def test_an_empty_picture_has_no_style():
    dark = np.full((4, 32, 32, 3), 20, np.uint8)
    assert find_style(dark) is None
    assert measure([dark], ["plain"]).value == 0.0


def test_merging_equals_the_union():
    clips, styles = real_clips(32)
    empty = StyleAccuracy.empty()
    whole = empty.update(generated=clips, styles=styles)
    first = empty.update(generated=clips[:7], styles=styles[:7])
    second = empty.update(generated=np.stack(clips[7:]), styles=styles[7:])
    assert first.merge(second) == whole == second.merge(first)


def test_it_is_a_metric_and_empty_has_nothing_to_say():
    assert isinstance(StyleAccuracy.empty(), Metric)
    assert StyleAccuracy.empty().compute() == {}


def test_an_unknown_style_is_refused_in_one_line():
    with pytest.raises(ValueError, match="no style 'baroque'; choose from plain, stripes") as error:
        measure([picture(23)], ["baroque"])
    assert "\n" not in str(error.value)
