"""The words of the shape world: what each one means, and captions written and read with them.

Caption    a {colour} {shape} moves {motion}[ slowly| quickly][ and a ...]
           [, the camera pans {direction}][, in {style} style]
Directions are unit vectors, x right and y down; speeds are frame fractions per second.
"""

import re
from dataclasses import dataclass
from math import sqrt
from typing import cast, get_args

from hstvg.scene.syntax import (
    MAX_OBJECTS,
    Camera,
    Colour,
    Motion,
    Scene,
    SceneObject,
    Shape,
    Speed,
    Style,
)

COLOURS: dict[Colour, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "orange": (255, 165, 0),
    "white": (255, 255, 255),
}
"""The CSS values, so that a judge who does not know this code reads the same colours."""

SHAPES: tuple[Shape, ...] = get_args(Shape)

_HALF = 1.0 / sqrt(2.0)
MOTIONS: dict[Motion, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up and to the left": (-_HALF, -_HALF),
    "up and to the right": (_HALF, -_HALF),
    "down and to the left": (-_HALF, _HALF),
    "down and to the right": (_HALF, _HALF),
    "still": (0.0, 0.0),
}

SPEEDS: dict[Speed | None, float] = {"slowly": 0.10, None: 0.18, "quickly": 0.28}

CAMERAS: dict[Camera, tuple[float, float]] = {
    "still": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}

CAMERA_SPEED = 0.10
"""Speed of a pan: visible in the background, and below the speed of most objects."""

STYLES: tuple[Style, ...] = get_args(Style)


@dataclass(frozen=True, kw_only=True)
class CaptionObject:
    """One object as a caption names it."""

    colour: Colour
    shape: Shape
    motion: Motion
    speed: Speed | None = None


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What a caption says, no more: a `Scene` without places, sizes and seed."""

    objects: tuple[CaptionObject, ...]
    camera: Camera = "still"
    style: Style = "plain"


def write_caption(scene: Scene | Caption) -> str:
    """The caption of a scene. A still camera and the plain style are not mentioned."""
    caption = " and ".join(_write_object(thing) for thing in scene.objects)
    if scene.camera != "still":
        caption += f", the camera pans {scene.camera}"
    if scene.style != "plain":
        caption += f", in {scene.style} style"
    return caption


def read_caption(text: str) -> Caption:
    """What a caption says. Case, spacing, "an" for "a" and a final full stop are forgiven.

    Raises:
        ValueError: one line that shows the part outside the grammar and what belongs there.
    """
    clean = " ".join(text.lower().split()).rstrip(".")
    match = _CAPTION.fullmatch(clean)
    if match is None:
        raise ValueError(f"not a caption of the shape world: {text!r}; expected {_EXPECTED}")
    things = re.split(_BETWEEN_OBJECTS, match["objects"])
    if len(things) > MAX_OBJECTS:
        raise ValueError(f"{len(things)} objects in {text!r}; at most {MAX_OBJECTS} can be shown")
    return Caption(
        objects=tuple(_read_object(thing) for thing in things),
        camera=cast(Camera, match["camera"] or "still"),
        style=cast(Style, match["style"] or "plain"),
    )


def style_of(text: str) -> Style | None:
    """The style that a caption says, plain where it says none; None if it is no such caption."""
    try:
        return read_caption(text).style
    except ValueError:
        return None


def without_style(text: str) -> str:
    """The caption without the words that say its style; any other text as it is."""
    return text if style_of(text) is None else re.sub(_STYLE_WORDS, "", text, flags=re.IGNORECASE)


def _write_object(thing: SceneObject | CaptionObject) -> str:
    words = f"a {thing.colour} {thing.shape} moves {thing.motion}"
    return f"{words} {thing.speed}" if thing.speed else words


def _read_object(text: str) -> CaptionObject:
    match = _OBJECT.fullmatch(text)
    if match is None:
        raise ValueError(f"not an object of the shape world: {text!r}; expected {_EXPECTED_OBJECT}")
    return CaptionObject(
        colour=cast(Colour, match["colour"]),
        shape=cast(Shape, match["shape"]),
        motion=cast(Motion, match["motion"]),
        speed=cast(Speed | None, match["speed"]),
    )


def _one_of(words: tuple[str, ...]) -> str:
    # Longest first: "up and to the left" must win over "up".
    return "|".join(sorted(words, key=len, reverse=True))


_OBJECT = re.compile(
    rf"an? (?P<colour>{_one_of(tuple(COLOURS))}) (?P<shape>{_one_of(SHAPES)})"
    rf" moves (?P<motion>{_one_of(tuple(MOTIONS))})"
    rf"(?: (?P<speed>{_one_of(get_args(Speed))}))?"
)
# "up and to the left" holds an "and" too; only "and a" begins another object.
_BETWEEN_OBJECTS = r" and (?=an? )"
_CAPTION = re.compile(
    r"(?P<objects>an? [^,]+)"
    r"(?:, the camera pans (?P<camera>left|right|up|down))?"
    rf"(?:, in (?P<style>{_one_of(STYLES)}) style)?"
)
_STYLE_WORDS = rf",\s+in\s+({_one_of(STYLES)})\s+style"
_EXPECTED_OBJECT = (
    f"'a COLOUR SHAPE moves MOTION [slowly|quickly]' with COLOUR of {', '.join(COLOURS)}; "
    f"SHAPE of {', '.join(SHAPES)}; MOTION of {', '.join(MOTIONS)}"
)
_EXPECTED = (
    "'OBJECT [and OBJECT ...][, the camera pans left|right|up|down]"
    f"[, in STYLE style]' with STYLE of {', '.join(STYLES)} and OBJECT like "
    "'a red circle moves right slowly'"
)
