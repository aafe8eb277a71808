"""What a shard sample holds, and the window of it that a model trains on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hstvg.data.decode import decode_window
from hstvg.data.optical_flow import estimate_flow, pool_flow
from hstvg.data.shapes import render
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
    start_s = start * max(duration_s - window.duration_s, 0.0)
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
