"""Is every object where a layout has it: overlap of boxes, judged from the pixels alone.

Objects are found as hstvg.metrics.control finds them, by colour; a box is that of a mask.

Limits   objects of one colour in one caption share a mask, so that their boxes overlap less; what
         others hide of an object is missing from its box. Real clips show how much that costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np
from jaxtyping import Float, UInt8

from hstvg.metrics.control import find_objects
from hstvg.metrics.interval import mean_interval
from hstvg.scene.grammar import read_caption
from hstvg.scene.layout import LABELS, NOTHING, Places
from hstvg.types import Estimate

SOLID = 0.5
"""Share of a pixel that an object covers at least to be counted to its box."""
SMALLEST = 0.01
"""Share of the frame that the commanded box covers, clipped to it, at least to be looked for."""


@dataclass(frozen=True, kw_only=True)
class LayoutOverlap:
    """Intersection over union of commanded and found boxes, the mean over the frames of each object
    and then over objects."""

    overlaps: tuple[float, ...] = ()
    """Per object, 0 to 1."""

    @classmethod
    def empty(cls) -> "LayoutOverlap":
        return cls()

    def update(
        self,
        *,
        generated: Sequence[UInt8[np.ndarray, "T H W 3"]],
        captions: Sequence[str],
        layouts: Sequence[Places],
        **_: object,
    ) -> "LayoutOverlap":
        """Judge clips against layouts at each of their frames.

        Args:
            captions: of the same objects.
        """
        found = [
            overlap
            for clip, caption, layout in zip(generated, captions, layouts, strict=True)
            for overlap in judge_places(clip, caption, layout)
        ]
        return self.merge(LayoutOverlap(overlaps=tuple(found)))

    def merge(self, other: "LayoutOverlap") -> "LayoutOverlap":
        return LayoutOverlap(overlaps=(*self.overlaps, *other.overlaps))

    def compute(self) -> Mapping[str, Estimate]:
        """Nothing where no object was judged."""
        return {"layout": mean_interval(self.overlaps)} if self.overlaps else {}


def judge_places(frames: UInt8[np.ndarray, "T H W 3"], caption: str, layout: Places) -> list[float]:
    """The overlap of every object of a caption that the layout has on screen; 0 of one that is not
    found."""
    said = read_caption(caption)
    boxes = {
        LABELS[label]: box
        for label, box in zip(layout.labels, layout.boxes, strict=True)
        if label != NOTHING
    }
    overlaps = []
    for thing, (_, mask) in zip(said.objects, find_objects(frames, said), strict=False):
        asked = np.clip(boxes[f"{thing.colour} {thing.shape}"], 0.0, 1.0)
        shown = [t for t, box in enumerate(asked) if area(box) > SMALLEST]
        if shown:
            each = [0.0 if mask is None else iou(asked[t], box_of(mask[t])) for t in shown]
            overlaps.append(fsum(each) / len(each))
    return overlaps


def box_of(mask: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "4"]:
    """x0, y0, x1, y1 of what is solid, in fractions of the frame; 0 if nothing is."""
    rows, columns = (np.flatnonzero((mask > SOLID).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros(4)
    height, width = mask.shape
    low = [columns[0] / width, rows[0] / height]
    return np.array([*low, (columns[-1] + 1) / width, (rows[-1] + 1) / height])


def iou(one: Float[np.ndarray, "4"], other: Float[np.ndarray, "4"]) -> float:
    both = np.concatenate([np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])])
    common = area(both)
    union = area(one) + area(other) - common
    return common / union if union > 0 else 0.0


def area(box: Float[np.ndarray, "4"]) -> float:
    """0 of a box whose sides cross."""
    width, height = np.maximum(box[2:] - box[:2], 0.0)
    return float(width * height)
