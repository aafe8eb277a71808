"""Do things move as they were told: estimated flow against the motion that the caption commands.

The end-point error of optical flow (EPE), in frame widths per second, on the objects of the shape
world. Real clips are not at 0: flow is an estimate, and an object that would leave the frame at the
commanded speed is slower. Clips in a style other than plain are skipped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from hstvg.metrics.control import find_objects
from hstvg.metrics.interval import mean_interval
from hstvg.scene.grammar import CAMERA_SPEED, CAMERAS, MOTIONS, SPEEDS, read_caption
from hstvg.types import Estimate


@dataclass(frozen=True, kw_only=True)
class FlowConsistency:
    """End-point error per object that was found."""

    errors: tuple[float, ...] = ()

    @classmethod
    def empty(cls) -> "FlowConsistency":
        return cls()

    def update(
        self,
        *,
        clips: Sequence[UInt8[np.ndarray, "T H W 3"]],
        flows: Sequence[Float32[np.ndarray, "T 2 h w"]],
        trusts: Sequence[Float32[np.ndarray, "T 1 h w"]],
        captions: Sequence[str],
        **_: object,
    ) -> "FlowConsistency":
        """Clips with their estimated forward flow in frame widths per second, on its own grid."""
        errors = [
            error
            for clip, flow, trust, caption in zip(clips, flows, trusts, captions, strict=True)
            for error in _errors(clip, flow, trust, caption)
        ]
        return self.merge(FlowConsistency(errors=tuple(errors)))

    def merge(self, other: "FlowConsistency") -> "FlowConsistency":
        return FlowConsistency(errors=self.errors + other.errors)

    def compute(self) -> Mapping[str, Estimate]:
        """The mean over objects; nothing when none was found."""
        return {"epe": mean_interval(self.errors)} if self.errors else {}


def _errors(
    clip: UInt8[np.ndarray, "T H W 3"],
    flow: Float32[np.ndarray, "T 2 h w"],
    trust: Float32[np.ndarray, "T 1 h w"],
    caption: str,
) -> list[float]:
    said = read_caption(caption)
    # Patterns that stand still on the screen, as stripes do, hide the motion from an estimate.
    if said.style != "plain":
        return []
    pan = CAMERA_SPEED * np.array(CAMERAS[said.camera])
    errors = []
    for thing, (_, mask) in zip(said.objects, find_objects(clip, said), strict=True):
        if mask is None:
            continue
        commanded = SPEEDS[thing.speed] * np.array(MOTIONS[thing.motion]) - pan
        weight = trust[:, 0] * _reduced(mask, flow.shape[2:])
        away = np.hypot(*(flow - commanded[:, None, None]).transpose(1, 0, 2, 3))
        if weight.sum() > 0:
            errors.append(float((away * weight).sum() / weight.sum()))
    return errors


def _reduced(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A mask on a coarser grid; rows and columns that fill no cell are dropped."""
    stride = mask.shape[1] // size[0]
    h, w = size
    blocks = mask[:, : h * stride, : w * stride].reshape(len(mask), h, stride, w, stride)
    return blocks.mean(axis=(2, 4))
