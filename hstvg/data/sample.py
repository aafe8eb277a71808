"""What a shard sample holds, and the window of it that a model trains on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from hstvg.data.decode import decode_window
from hstvg.data.optical_flow import estimate_flow, pool_flow
from hstvg.data.shapes import render
from hstvg.scene.layout import places
from hstvg.scene.syntax import Scene

MOTION_STRIDE = 4
"""Pixels per cell of the motion grid, in rows and columns."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of a video that one training clip shows: the shape of all that follows."""

    num_frames: int
    fps: float
    height: int
    width: int

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps

    @property
    def num_pixels(self) -> int:
        """Of all frames."""
        return self.num_frames * self.height * self.width

    def start_s(self, duration_s: float, start: float) -> float:
        """Where it begins in a clip, of which it shows the last frame at most.

        Args:
            start: its place among the possible ones, 0 to 1.
        """
        return start * max(duration_s - self.duration_s, 0.0)


def read_clip(
    video: bytes,
    *,
    duration_s: float,
    scene: Mapping[str, object] | None,
    window: Window,
    start: float,
    motion: bool,
    decoder: str,
) -> dict[str, np.ndarray]:
    """Decode a window of a sample and, if wanted, find its motion.

    Args:
        video: the MP4 member.
        scene: of the shape world, as its JSON member holds it; its motion is exact, that of any
            other footage is estimated.
        start: where the window lies among its possible starts, 0 to 1.

    Returns:
        pixels, uint8 T H W 3, and with motion also `motion`, float16 2 T Hm Wm in frame widths per
        second, and `motion_confidence`, float16 1 T Hm Wm.

    Raises:
        ValueError: a member is damaged.
    """
    start_s = window.start_s(duration_s, start)
    size = {"height": window.height, "width": window.width}
    span = {"start_s": start_s, "num_frames": window.num_frames, "fps": window.fps}
    pixels = decode_window(video, **span, **size, decoder=decoder)
    if not motion:
        return {"pixels": pixels}
    if scene:
        flow = render(Scene.model_validate(scene), **span, **size).flow
        confidence = np.ones_like(flow[:, :1])
        confidence[-1] = 0
    else:
        flow, confidence = estimate_flow(pixels, window.fps)
    stride = flow.shape[2] // max(window.height // MOTION_STRIDE, 1)
    pooled, trust = pool_flow(flow, confidence, stride)
    return {
        "pixels": pixels,
        "motion": pooled.transpose(1, 0, 2, 3).astype(np.float16),
        "motion_confidence": trust.transpose(1, 0, 2, 3).astype(np.float16),
    }


def read_layout(
    facts: Mapping[str, object],
    *,
    duration_s: float,
    window: Window,
    start: float,
    moments: Float[np.ndarray, "t"],
) -> dict[str, np.ndarray]:
    """What a window of a sample shows where.

    Args:
        facts: its JSON member; without a scene of the shape world nothing is known to be anywhere.
        start: as that of `read_clip`.
        moments: of the window, in frames.

    Returns:
        boxes, float32 O t 4, and labels, int8 O, of `hstvg.scene.layout.Places`.

    Raises:
        ValueError: the scene is damaged.
    """
    scene, shown = facts.get("scene"), window.width / window.height
    found = places(
        Scene.model_validate(scene) if scene else None,
        window.start_s(duration_s, start) + moments / window.fps,
        aspect=_aspect(facts) or shown,
        shown=shown,
    )
    return {"boxes": found.boxes, "labels": found.labels}


def _aspect(facts: Mapping[str, Any]) -> float | None:
    """Width over height of the whole frame, if its JSON member says so."""
    known = "width" in facts and "height" in facts
    return float(facts["width"]) / float(facts["height"]) if known else None
