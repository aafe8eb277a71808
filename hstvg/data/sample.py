"""What a shard sample holds, and the window of it that a model trains on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float16, UInt8

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


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A decoded window, as it travels from the data tasks to the workers."""

    pixels: UInt8[np.ndarray, "T H W 3"]
    motion: Float16[np.ndarray, "2 T Hm Wm"]
    """Frame widths per second."""
    motion_confidence: Float16[np.ndarray, "1 T Hm Wm"]


def read_clip(video: bytes, facts: bytes, window: Window, start: float) -> Clip:
    """Decode a window of a sample and find its motion.

    Motion is exact where the sample carries its scene, estimated otherwise.

    Args:
        video: the MP4 member.
        facts: the JSON member.
        start: where the window lies among its possible starts, 0 to 1.

    Raises:
        ValueError: a member is damaged.
    """
    record = json.loads(facts)
    duration_s = record["num_frames"] / record["fps"]
    start_s = start * max(duration_s - window.duration_s, 0.0)
    size = {"height": window.height, "width": window.width}
    span = {"start_s": start_s, "num_frames": window.num_frames, "fps": window.fps}
    pixels = decode_window(video, **span, **size)
    if record.get("scene"):
        flow = render(Scene.model_validate(record["scene"]), **span, **size).flow
        confidence = np.ones_like(flow[:, :1])
        confidence[-1] = 0
    else:
        flow, confidence = estimate_flow(pixels, window.fps)
    stride = flow.shape[2] // max(window.height // MOTION_STRIDE, 1)
    motion, trust = pool_flow(flow, confidence, stride)
    return Clip(
        pixels=pixels,
        motion=motion.transpose(1, 0, 2, 3).astype(np.float16),
        motion_confidence=trust.transpose(1, 0, 2, 3).astype(np.float16),
    )


def to_batch(arrays: Mapping[str, np.ndarray], fps: float, device: torch.device) -> VideoBatch:
    """Columns of a stream as a batch; pixels travel as uint8 and are normalised on the device."""
    pixels = _tensor(arrays["pixels"], device).permute(0, 4, 1, 2, 3)
    return VideoBatch(
        pixels=pixels.float() / 127.5 - 1,
        fps=torch.full((len(pixels),), float(fps), device=device),
        captions=_texts(arrays["caption"]),
        positions=torch.from_numpy(np.array(arrays["position"], dtype=np.int64)),
        keys=_texts(arrays["key"]),
        motion=_tensor(arrays["motion"], device).float(),
        motion_confidence=_tensor(arrays["motion_confidence"], device).float(),
    )


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    # Arrays from the object store are read-only; torch only reads them here.
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array).to(device, non_blocking=True)


def _texts(values: Sequence[object] | np.ndarray) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
