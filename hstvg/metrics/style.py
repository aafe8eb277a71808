"""In which style of the shape world a clip is, judged from the pixels alone.

The judge knows how the styles are defined and nothing of any model; nothing of it is learnt. It
asks one question after the other, each of which picks out one style: is the background bright, is
it tinted, is it lifted to a band, do stripes run across it, is it grainy, are edges soft? What says
no to all of them is plain.

Of real clips after H.264, every style as often, it names 0.997 right at 32x32 pixels and all at
64x64 (600 and 320 clips of one object), and all of 320 clips of 1 to 3 objects at either size;
what it mistakes is blur for plain or plain for blur.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from hstvg.metrics.interval import wilson
from hstvg.metrics.restoration import stripe_turns
from hstvg.scene.grammar import STYLES
from hstvg.scene.syntax import Style
from hstvg.types import Estimate

# All of 255, between what real clips in and out of a style have at 32x32 and 64x64 pixels.
BRIGHT = 128.0
"""Mean of the background from which it is inverted: 228 to 238, others at most 66."""
TINT = 27.0
"""Red less blue of the background from which it is tinted: 41 to 58, others at most 14."""
LIFTED = 43.0
"""Mean of the background from which it is posterised: 61 to 66, others but the tinted ones at most
30."""
STRIPED = 0.14
"""Share of the brightness of the background that goes up and down with the stripes from which it is
striped: 0.23 to 0.58, others at most 0.08."""
GRAINY = 18.0
"""Median difference of a pixel from its four neighbours, summed, from which it is grainy: 44 to 59,
others that come to this question at most 9."""
SHARP = 0.8
"""Share of an edge that a sharp one climbs in one pixel."""
STANDS_OUT = 60.0
"""Channel difference from the background that some pixels have wherever anything is shown."""
EDGE = 0.7
"""Share of the contrast of a clip from which a change of brightness is the edge of an object."""


@dataclass(frozen=True, kw_only=True)
class StyleAccuracy:
    """Share of clips that show the style that was asked for."""

    right: int = 0
    num_clips: int = 0

    @classmethod
    def empty(cls) -> "StyleAccuracy":
        return cls()

    def update(
        self,
        *,
        generated: Sequence[UInt8[np.ndarray, "T H W 3"]] | UInt8[np.ndarray, "B T H W 3"],
        styles: Sequence[str],
        **_: object,
    ) -> "StyleAccuracy":
        """Judge clips (a list, or one array with a leading batch axis) against the styles asked.

        Raises:
            ValueError: a style that the shape world does not know, or not one style per clip.
        """
        for style in set(styles) - set(STYLES):
            raise ValueError(f"no style {style!r}; choose from {', '.join(STYLES)}")
        right = sum(
            find_style(frames) == style for frames, style in zip(generated, styles, strict=True)
        )
        return self.merge(StyleAccuracy(right=right, num_clips=len(styles)))

    def merge(self, other: "StyleAccuracy") -> "StyleAccuracy":
        return StyleAccuracy(
            right=self.right + other.right, num_clips=self.num_clips + other.num_clips
        )

    def compute(self) -> Mapping[str, Estimate]:
        """The share; nothing when no clip was judged."""
        return {"style": wilson(self.right, self.num_clips)} if self.num_clips else {}


def find_style(frames: UInt8[np.ndarray, "T H W 3"]) -> Style | None:
    """The style of a clip; None if nothing stands out from its background."""
    image = frames.astype(np.float32)
    dark = np.median(image, axis=(0, 1, 2))
    if np.quantile(np.abs(image - dark).max(axis=-1), 0.99) < STANDS_OUT:
        return None
    tint = float(dark[0] - dark[2])
    if dark.mean() > BRIGHT:
        return "invert"
    if abs(tint) > TINT:
        return "warm" if tint > 0 else "cool"
    if dark.mean() > LIFTED:
        return "posterise"
    if _stripes(image, dark) > STRIPED:
        return "stripes"
    if _grain(image) > GRAINY:
        return "noise"
    return "blur" if _steepness(image, dark) < _steepness_of_blur(image.shape[2]) else "plain"


def _stripes(image: Float32[np.ndarray, "T H W 3"], dark: Float32[np.ndarray, "3"]) -> float:
    """Amplitude of a wave along the stripes, wherever it begins, as a share of the brightness."""
    height, width = image.shape[1:3]
    # Objects are cut down to the background, whose pattern is the same in every frame.
    back = np.minimum(image, dark + 20.0).mean(axis=(0, 3))
    # A window that ends softly, or else every slow change of the background would leak in.
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
    window /= window.sum()
    level = float((window * back).sum())
    wave = np.exp(2j * np.pi * stripe_turns(height, width))
    return 2.0 * float(abs((window * (back - level) * wave).sum())) / max(level, 1.0)


def _grain(image: Float32[np.ndarray, "T H W 3"]) -> float:
    around = image[:, :-2, 1:-1] + image[:, 2:, 1:-1] + image[:, 1:-1, :-2] + image[:, 1:-1, 2:]
    return float(np.median(np.abs(4.0 * image[:, 1:-1, 1:-1] - around)))


def _reach(width: int) -> int:
    """Pixels on each side over which the blur takes the mean, twice on each axis."""
    return max(1, width // 24)


def _steepness_of_blur(width: int) -> float:
    """Half-way, in ratio, from the steepest that two means leave of an edge to a sharp one."""
    return sqrt(SHARP / (2 * _reach(width) + 1))


def _steepness(image: Float32[np.ndarray, "T H W 3"], dark: Float32[np.ndarray, "3"]) -> float:
    """Median share of the edges of objects that is climbed in one pixel."""
    contrast = float(np.quantile(np.abs(image - dark).max(axis=-1), 0.99))
    # Long enough to see a blurred edge from its foot to its top.
    length = 2 * (2 * _reach(image.shape[2]) + 1) + 1
    shares = []
    for axis in (1, 2):
        lines = np.moveaxis(image, axis, -1).reshape(-1, image.shape[axis])
        height = _highest(lines, length) + _highest(-lines, length)
        step = _highest(np.abs(np.diff(lines)), length - 1)
        edges = height > EDGE * contrast
        shares.append(step[edges] / height[edges])
    found = np.concatenate(shares)
    return float(np.median(found)) if len(found) else 0.0


def _highest(lines: Float32[np.ndarray, "N W"], length: int) -> Float32[np.ndarray, "N pieces"]:
    """Of every piece of that many pixels."""
    grown = cv2.dilate(lines, np.ones((1, length), np.uint8), anchor=(0, 0))
    return grown[:, : lines.shape[1] - length + 1]
