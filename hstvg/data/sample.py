"""What a shard sample holds, and the window of it that a model trains on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hstvg.data.decode import decode_window
from hstvg.data.optical_flow import estimate_flow, pool_flow
from hstvg.data.shapes import render
from hstvg.scene.syntax import Scene
from hstvg.types import VideoBatch

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


def to_batch(arrays: Mapping[str, np.ndarray], fps: float, device: torch.device) -> VideoBatch:
    """Columns of a stream as a batch; pixels travel as uint8 and are normalised on the device."""
    pixels = tensor_of(arrays["pixels"], device).permute(0, 4, 1, 2, 3)
    return VideoBatch(
        pixels=pixels.float() / 127.5 - 1,
        fps=torch.full((len(pixels),), float(fps), device=device),
        captions=texts_of(arrays["caption"]),
        positions=torch.from_numpy(np.array(arrays["position"], dtype=np.int64)),
        keys=texts_of(arrays["key"]),
        motion=_optional(arrays, "motion", device),
        motion_confidence=_optional(arrays, "motion_confidence", device),
    )


def _optional(
    arrays: Mapping[str, np.ndarray], name: str, device: torch.device
) -> torch.Tensor | None:
    return tensor_of(arrays[name], device).float() if name in arrays else None


def tensor_of(array: np.ndarray, device: torch.device) -> torch.Tensor:
    # Arrays from the object store are read-only; torch only reads them here.
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array).to(device, non_blocking=True)


def texts_of(values: Sequence[object] | np.ndarray) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
