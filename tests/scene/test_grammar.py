from typing import get_args

import pytest

from hstvg.scene import syntax
from hstvg.scene.grammar import (
    CAMERAS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SPEEDS,
    STYLES,
    Caption,
    CaptionObject,
    read_caption,
    style_of,
    without_style,
    write_caption,
)


def an_object(**words):
    usual = {"colour": "red", "shape": "circle", "motion": "right"}
    return CaptionObject(**(usual | words))


def test_tables_and_syntax_know_the_same_words():
    assert tuple(COLOURS) == get_args(syntax.Colour)
    assert tuple(MOTIONS) == get_args(syntax.Motion)
    assert tuple(CAMERAS) == get_args(syntax.Camera)
    assert set(SPEEDS) == {None, *get_args(syntax.Speed)}


def test_directions_are_unit_vectors_with_y_down():
    assert MOTIONS["up"] == (0.0, -1.0)
    assert MOTIONS["down and to the right"] == pytest.approx((0.5**0.5, 0.5**0.5))
    lengths = [x * x + y * y for name, (x, y) in MOTIONS.items() if name != "still"]
    assert lengths == pytest.approx([1.0] * 8)


def test_a_full_caption_word_for_word():
    caption = Caption(
        objects=(
            an_object(motion="up and to the left", speed="slowly"),
            an_object(colour="orange", shape="square", motion="still"),
        ),
        camera="down",
        style="posterise",
    )
    assert write_caption(caption) == (
        "a red circle moves up and to the left slowly and a orange square moves still"
        ", the camera pans down, in posterise style"
    )


def test_what_is_usual_is_not_mentioned():
    assert write_caption(Caption(objects=(an_object(),))) == "a red circle moves right"


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_object_survives_writing_and_reading(colour, shape, motion):
    objects = tuple(
        an_object(colour=colour, shape=shape, motion=motion, speed=speed) for speed in SPEEDS
    )
    caption = Caption(objects=objects)
    assert read_caption(write_caption(caption)) == caption


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("camera", CAMERAS)
def test_every_camera_and_style_survives_writing_and_reading(camera, style):
    caption = Caption(objects=(an_object(),), camera=camera, style=style)
    assert read_caption(write_caption(caption)) == caption


def test_small_liberties_are_forgiven():
    assert read_caption(" An  orange circle moves right. ").objects[0].colour == "orange"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat sits on a mat",
        "a purple circle moves right",
        "a red circle moves sideways",
        "a red circle",
        "a red circle moves right, the camera pans still",
        "a red circle moves right, in cubist style",
        "a red circle moves right, in warm style, the camera pans left",
        " and ".join(["a red circle moves right"] * 4),
    ],
)
def test_other_text_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"shape world|at most 3") as refused:
        read_caption(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("style", STYLES)
def test_the_style_can_be_taken_out_of_a_caption(style):
    whole = write_caption(Caption(objects=(an_object(),), camera="left", style=style))
    bare = write_caption(Caption(objects=(an_object(),), camera="left"))
    assert without_style(whole) == bare
    assert style_of(whole) == style
    assert style_of(bare) == "plain"


def test_other_text_keeps_its_words():
    text = "a cat sits on a mat, in warm style"
    assert without_style(text) == text
    assert style_of(text) is None
    assert without_style("A red circle moves up,  in WARM style.") == "A red circle moves up."
