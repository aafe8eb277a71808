"""How much of a clip's change no motion explains: temporal residual, and flicker where all rests.

Less is not better: a frozen or blurred clip has none. Compare with real clips, beside which these
values are to be reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from hstvg.metrics.interval import mean_interval
from hstvg.nn.warp import warp
from hstvg.types import Estimate

REST = 0.02
"""Frame widths per second below which a place rests."""


@dataclass(frozen=True, kw_only=True)
class Coherence:
    """Mean absolute change in grey levels of 255, per clip."""

    residual: tuple[float, ...] = ()
    """From each frame to the next along its motion, weighted by trust in that."""
    flicker: tuple[float, ...] = ()
    """In place, where nothing moves."""

    @classmethod
    def empty(cls) -> "Coherence":
        return cls()

    def update(
        self,
        *,
        clips: Sequence[UInt8[np.ndarray, "T H W 3"]],
        flows: Sequence[Float32[np.ndarray, "T 2 h w"]],
        trusts: Sequence[Float32[np.ndarray, "T 1 h w"]],
        fps: float,
        **_: object,
    ) -> "Coherence":
        """Clips with their estimated forward flow in frame widths per second, on its own grid."""
        values = [
            _changes(clip, flow, trust, fps)
            for clip, flow, trust in zip(clips, flows, trusts, strict=True)
        ]
        return self.merge(
            Coherence(
                residual=tuple(residual for residual, _ in values),
                flicker=tuple(flicker for _, flicker in values),
            )
        )

    def merge(self, other: "Coherence") -> "Coherence":
        return Coherence(
            residual=self.residual + other.residual, flicker=self.flicker + other.flicker
        )

    def compute(self) -> Mapping[str, Estimate]:
        """Means over clips; nothing when no clip was seen."""
        if not self.residual:
            return {}
        return {"residual": mean_interval(self.residual), "flicker": mean_interval(self.flicker)}


def _changes(
    clip: UInt8[np.ndarray, "T H W 3"],
    flow: Float32[np.ndarray, "T 2 h w"],
    trust: Float32[np.ndarray, "T 1 h w"],
    fps: float,
) -> tuple[float, float]:
    frames = torch.from_numpy(clip).permute(3, 0, 1, 2).float()
    before, after = frames[:, :-1], frames[:, 1:]
    size = before.shape[1:]
    motion = _enlarged(flow, size)
    step = motion * (size[2] / fps)  # pixels per frame
    along = warp(after[None], step[None])[0]
    weight = _enlarged(trust, size)
    residual = ((along - before).abs() * weight).sum() / (3 * weight.sum()).clamp_min(1e-6)
    rests = (motion.norm(dim=0, keepdim=True) < REST).float()
    flicker = ((after - before).abs() * rests).sum() / (3 * rests.sum()).clamp_min(1.0)
    return float(residual), float(flicker)


def _enlarged(field: np.ndarray, size: torch.Size) -> torch.Tensor:
    """Of all frames but the last, which has no successor, on the grid of the frames."""
    grid = torch.from_numpy(field[:-1]).transpose(0, 1)
    return torch.nn.functional.interpolate(grid[None], size=tuple(size), mode="nearest")[0]
