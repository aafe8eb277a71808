"""Does a clip show what its caption says: colour, shape and motion, judged from the pixels alone.

The judge knows the grammar of the shape world and nothing of the renderer or of any model.
It reads the picture in four steps: the dark background, a soft mask per object, the mask's
proportions (shape), and the path of its centre (motion). Motion is judged in the world: the pan
that the caption commands is added back to what moves on screen.

Styles   clips whose caption names a style are first made plain again, as far as that can be done
         (`hstvg.metrics.restoration`). Plain ones are read as they are.
Limits   objects of one colour in one caption share a mask; several objects in blur style are
         skipped, because their rims mix.

Share of objects of real clips that are read right, colour / shape / motion, of 40 to 75 clips per
style (scenes 150000 and 170000 onwards, after H.264, 8 fps):

               1 object, 32x32   1 object, 64x64   1 to 3, 32x32    1 to 3, 64x64
    plain      1.00 1.00 1.00    1.00 1.00 1.00    1.00 0.97 1.00   1.00 0.99 1.00
    stripes    1.00 1.00 1.00    1.00 1.00 1.00    1.00 0.88 1.00   1.00 0.95 1.00
    blur       1.00 0.99 1.00    1.00 1.00 1.00    skipped if several: shape 0.80 and 0.83
    posterise  1.00 1.00 1.00    1.00 1.00 1.00    1.00 0.94 1.00   1.00 0.98 1.00
    noise      1.00 0.96 1.00    1.00 0.93 1.00    1.00 0.91 1.00   1.00 0.95 1.00
    invert     1.00 1.00 1.00    1.00 1.00 1.00    1.00 0.96 0.99   1.00 0.96 1.00
    warm       1.00 1.00 1.00    1.00 1.00 1.00    1.00 0.92 0.99   1.00 0.92 1.00
    cool       1.00 1.00 1.00    1.00 1.00 1.00    1.00 0.95 1.00   1.00 0.96 1.00
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot

import numpy as np
from jaxtyping import Float, UInt8

from hstvg.metrics.interval import wilson
from hstvg.metrics.restoration import restore
from hstvg.scene.grammar import (
    CAMERA_SPEED,
    CAMERAS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Caption,
    CaptionObject,
    read_caption,
)
from hstvg.types import Estimate

CHANCE: Mapping[str, float] = {
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "motion": 1 / len(MOTIONS),
}
"""Accuracy of guessing, for captions with one object."""

FOREGROUND = 60.0
"""Largest channel difference from the background, of 255, from which a pixel is foreground.
The texture of the background stays below 25, the darkest colour (green) stands out by 100."""
SMALLEST = 0.006
"""Share of the frame that an object covers at least; the smallest triangle covers 0.026."""
TRIANGLE_FILL, CIRCLE_FILL = 0.66, 0.89
"""Area over width times height is 1/2 for the triangle, pi/4 for the circle, 1 for the square;
these are the borders between them, moved a little for pixels and blur."""
TRIANGLE_LEAN = -0.3
"""Skewness of the rows: -0.57 for a triangle that points up, 0 for circle and square."""
WHOLE = 0.85
"""Share of its largest area with which an object counts as not hidden."""
STILL_SPEED = 0.05
"""Frame widths per second below which an object is still: half of "slowly"."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was asked of one object and what was seen; None where nothing could be seen."""

    asked: CaptionObject
    colour: str | None
    shape: str | None
    motion: str | None

    def is_right(self, attribute: str) -> bool:
        return getattr(self, attribute) == getattr(self.asked, attribute)


@dataclass(frozen=True, kw_only=True)
class ControlAccuracy:
    """Share of objects whose colour, shape and motion are as the caption says."""

    right: tuple[int, ...] = (0,) * len(CHANCE)
    """Objects judged right, in the order of `CHANCE`."""
    num_objects: int = 0

    @classmethod
    def empty(cls) -> "ControlAccuracy":
        return cls()

    def update(
        self,
        *,
        generated: Sequence[UInt8[np.ndarray, "T H W 3"]] | UInt8[np.ndarray, "B T H W 3"],
        captions: Sequence[str],
        fps: float,
        **_: object,
    ) -> "ControlAccuracy":
        """Judge clips (a list, or one array with a leading batch axis) against their captions."""
        verdicts = [
            verdict
            for frames, caption in zip(generated, captions, strict=True)
            for verdict in judge_clip(frames, read_caption(caption), fps=fps)
        ]
        right = tuple(sum(verdict.is_right(name) for verdict in verdicts) for name in CHANCE)
        return self.merge(ControlAccuracy(right=right, num_objects=len(verdicts)))

    def merge(self, other: "ControlAccuracy") -> "ControlAccuracy":
        right = tuple(a + b for a, b in zip(self.right, other.right, strict=True))
        return ControlAccuracy(right=right, num_objects=self.num_objects + other.num_objects)

    def compute(self) -> Mapping[str, Estimate]:
        """Shares over objects; nothing when no object was judged."""
        if not self.num_objects:
            return {}
        return {
            name: wilson(right, self.num_objects)
            for name, right in zip(CHANCE, self.right, strict=True)
        }


def judge_clip(
    frames: UInt8[np.ndarray, "T H W 3"], caption: Caption, *, fps: float = 8.0
) -> tuple[Verdict, ...]:
    """One verdict per object of the caption; none of several objects in blur style."""
    pan = CAMERA_SPEED * np.array(CAMERAS[caption.camera])
    return tuple(
        _judge(thing, colour, mask, pan, fps)
        for thing, (colour, mask) in zip(
            caption.objects,
            find_objects(frames, caption),
            strict=False,  # none where they cannot be told apart
        )
    )


Seen = tuple[str | None, np.ndarray | None]
"""Name of a colour and the soft mask [T, H, W] of what has it."""


def find_objects(frames: UInt8[np.ndarray, "T H W 3"], caption: Caption) -> list[Seen]:
    """What was found of each object of a caption; nothing of several objects in blur style."""
    if caption.style == "blur" and len(caption.objects) > 1:
        return []
    image = restore(frames, caption.style)
    dark = np.median(image, axis=(0, 1, 2))
    return _match(_find(image, dark, len(caption.objects)), caption.objects)


def _find(
    image: Float[np.ndarray, "T H W 3"], dark: Float[np.ndarray, "3"], num_objects: int
) -> list[Seen]:
    """The `num_objects` colours that cover most, each with its mask."""
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], np.float32)
    core = image[_is_core(image, dark)]
    if not len(core):
        return []
    nearest = ((core[:, None] - palette) ** 2).sum(axis=-1).argmin(axis=-1)
    counts = np.bincount(nearest, minlength=len(names))
    common = np.argsort(-counts, kind="stable")[:num_objects]
    # Sampling noise and blended edges leave a few pixels of colours that no object has.
    common = [k for k in common if counts[k] >= max(1.0, 0.05 * counts.max())]
    ends = np.array([np.median(core[nearest == k], axis=0) for k in common])
    return list(zip([names[k] for k in common], _masks(image, dark, ends), strict=True))


def _is_core(image: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """Foreground pixels that look like their four neighbours: insides, where colours are pure."""
    strength = np.abs(image - dark).max(axis=-1)
    foreground = strength > FOREGROUND
    step_y = np.abs(np.diff(image, axis=1)).max(axis=-1)
    step_x = np.abs(np.diff(image, axis=2)).max(axis=-1)
    rough = np.zeros(foreground.shape, np.float32)
    rough[:, 1:], rough[:, :-1] = step_y, np.maximum(rough[:, :-1], step_y)
    rough[:, :, 1:] = np.maximum(rough[:, :, 1:], step_x)
    rough[:, :, :-1] = np.maximum(rough[:, :, :-1], step_x)
    core = foreground & (rough < FOREGROUND)
    # A small or blurred object has no pure inside; then its strongest pixels must do.
    enough = core.sum() > SMALLEST / 2.0 * core.size
    return core if enough else foreground & (strength > 0.75 * strength.max())


def _masks(
    image: Float[np.ndarray, "T H W 3"],
    dark: Float[np.ndarray, "3"],
    ends: Float[np.ndarray, "K 3"],
) -> list[np.ndarray]:
    """Share of each pixel that each colour covers.

    A pixel on an outline lies on the line from the background to the colour of its object, so it
    belongs to the nearest such line, by as much as it is along it.
    """
    along = ends - dark
    reach = np.clip((image - dark) @ along.T / (along**2).sum(axis=-1), 0.0, 1.0)
    apart = ((image - dark)[..., None, :] - reach[..., None] * along) ** 2
    owner = apart.sum(axis=-1).argmin(axis=-1)
    reach[reach < 0.2] = 0.0
    return [np.where(owner == k, reach[..., k], 0.0) for k in range(len(ends))]


def _match(found: list[Seen], objects: tuple[CaptionObject, ...]) -> list[Seen]:
    """What was found in the order of the caption: by colour first, then whatever is left."""
    asked = [thing.colour for thing in objects]
    left = [seen for seen in found if seen[0] not in asked]
    by_colour = dict(found)
    return [
        (colour, by_colour[colour])
        if colour in by_colour
        else (left.pop(0) if left else (None, None))
        for colour in asked
    ]


def _judge(
    asked: CaptionObject,
    colour: str | None,
    mask: np.ndarray | None,
    pan: Float[np.ndarray, "2"],
    fps: float,
) -> Verdict:
    shape = motion = None
    if mask is not None:
        visible = mask.mean(axis=(1, 2)) > SMALLEST
        if visible.sum() >= max(2, len(mask) // 2):
            shape = _read_shape(mask[visible])
            motion = _read_motion(mask[visible], np.flatnonzero(visible) / fps, pan)
    return Verdict(asked=asked, colour=colour, shape=shape, motion=motion)


def _read_shape(mask: Float[np.ndarray, "T H W"]) -> str:
    area = mask.sum(axis=(1, 2))
    # Frames in which another object hides a part would show another outline.
    whole = mask[area >= WHOLE * area.max()]
    fill, lean = (float(np.median(feature)) for feature in _proportions(whole))
    if lean < TRIANGLE_LEAN or fill < TRIANGLE_FILL:
        return "triangle"
    return "circle" if fill < CIRCLE_FILL else "square"


def _proportions(
    mask: Float[np.ndarray, "T H W"],
) -> tuple[Float[np.ndarray, "T"], Float[np.ndarray, "T"]]:
    """Area over width times height, and skewness of the rows, for every frame."""
    rows, columns = mask.sum(axis=2), mask.sum(axis=1)
    area = rows.sum(axis=1)
    fill = area / (rows.max(axis=1) * columns.max(axis=1))
    share = rows / area[:, None]
    y = np.arange(mask.shape[1])
    away = y - (share * y).sum(axis=1, keepdims=True)
    spread = np.sqrt((share * away**2).sum(axis=1))
    return fill, (share * away**3).sum(axis=1) / np.maximum(spread, 1e-3) ** 3


def _read_motion(
    mask: Float[np.ndarray, "T H W"], times: Float[np.ndarray, "T"], pan: Float[np.ndarray, "2"]
) -> str:
    _, height, width = mask.shape
    area = mask.sum(axis=(1, 2))
    x = mask.sum(axis=1) @ ((np.arange(width) + 0.5) / width) / area
    y = mask.sum(axis=2) @ ((np.arange(height) + 0.5) / height) / area
    # Slope of the straight line that fits the whole path best.
    late = times - times.mean()
    speed_x, speed_y = (float(late @ way / (late @ late)) for way in (x, y))
    speed_x, speed_y = speed_x + pan[0], speed_y + pan[1]
    if hypot(speed_x, speed_y) < STILL_SPEED:
        return "still"
    moving = {name: d for name, d in MOTIONS.items() if name != "still"}
    return max(moving, key=lambda name: moving[name][0] * speed_x + moving[name][1] * speed_y)
