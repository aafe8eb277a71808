"""Styles of the shape world taken back: a clip as it would look if it were plain.

What is known of a style is its definition: a tint is a gain and a lift per colour, stripes darken
along known diagonals, inversion is its own inverse. Blur, noise and posterisation lose something;
of these the restoration is as near as a reader of shapes needs it (`hstvg.metrics.control` says how
near that is).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8

from hstvg.scene.syntax import Style

Pixels = Float32[np.ndarray, "T H W 3"]
"""0 to 255, and beyond where a style took more than there was."""

STRIPES = 6.0
"""Stripes across the width of the frame, and along each of its rows and columns alike."""
SHADE = 0.4
"""Brightness in the dark half of a stripe."""
BAND = 160.0
"""Of 255, between the half that the background is lifted to at most and the three quarters of the
darkest colour."""
GRAIN = 45.0
"""Of 255: what stands out from the background by less may be grain, whose deviation is 31 before a
video codec smooths it. The darkest colour (green) stands out by 100."""


def restore(frames: UInt8[np.ndarray, "T H W 3"], style: Style) -> Pixels:
    """What a clip in a style would be in plain style, as far as that can be told."""
    return RESTORERS[style](frames.astype(np.float32))


def stripe_turns(height: int, width: int) -> Float[np.ndarray, "H W"]:
    """How many stripes lie between the upper left corner and each pixel."""
    return (np.arange(height)[:, None] + np.arange(width)) / width * STRIPES


def _even(image: Pixels) -> Pixels:
    turns = stripe_turns(*image.shape[1:3])
    return image / np.where(turns % 1.0 < 0.5, 1.0, SHADE).astype(np.float32)[..., None]


def _sharpen(image: Pixels) -> Pixels:
    """Without it, the rims of a blurred object look like an object of a darker colour."""
    return image + 1.5 * (image - _neighbours(image).mean(axis=0))


def _unband(image: Pixels) -> Pixels:
    """The root that posterisation takes, undone; the bands of the background become one."""
    shown = image.max(axis=-1, keepdims=True) > BAND
    square = image**2 / 255.0
    return np.where(shown, square, np.median(square, axis=(0, 1, 2)))


def _degrain(image: Pixels) -> Pixels:
    """The grain is the same in every frame, so most of it is what a median filter takes away in
    most of them; outlines move on and stay as they are."""
    clean = image - np.median(image - np.median(_neighbours(image), axis=0), axis=0)
    dark = np.median(clean, axis=(0, 1, 2))
    stands_out = np.abs(clean - dark).max(axis=-1, keepdims=True) > GRAIN
    return np.where(stands_out, clean, dark)


def _untint(gain: Sequence[float], lift: Sequence[float]) -> Callable[[Pixels], Pixels]:
    def untint(image: Pixels) -> Pixels:
        return (image - 255.0 * np.array(lift, np.float32)) / np.array(gain, np.float32)

    return untint


def _neighbours(image: Pixels) -> Float32[np.ndarray, "9 T H W 3"]:
    """Every pixel and the eight around it."""
    height, width = image.shape[1:3]
    wide = np.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    return np.stack([wide[:, y : y + height, x : x + width] for y in range(3) for x in range(3)])


RESTORERS: Mapping[Style, Callable[[Pixels], Pixels]] = {
    "plain": lambda image: image,
    "stripes": _even,
    "blur": _sharpen,
    "posterise": _unband,
    "noise": _degrain,
    "invert": lambda image: 255.0 - image,
    "warm": _untint((0.85, 0.7, 0.4), (0.15, 0.07, 0.0)),
    "cool": _untint((0.4, 0.7, 0.85), (0.0, 0.07, 0.15)),
}
