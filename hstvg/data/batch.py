"""Between arrays and tensors: columns of a stream as batches, latents as members of a shard."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Integer
from safetensors.torch import save
from torch import Tensor

from hstvg.nn.haar_bank import style_statistics
from hstvg.scene.layout import LABELS
from hstvg.types import LatentBatch, Layout, StyleReference, VideoBatch


def to_batch(arrays: Mapping[str, np.ndarray], fps: float, device: torch.device) -> VideoBatch:
    """Columns of a stream as a batch; pixels travel as uint8 and are normalised on the device."""
    pixels = _floats(arrays["pixels"], device).permute(0, 4, 1, 2, 3)
    return VideoBatch(
        pixels=pixels.div_(127.5).sub_(1),
        fps=torch.full((len(pixels),), float(fps), device=device),
        captions=_texts(arrays["caption"]),
        positions=torch.from_numpy(np.array(arrays["position"], dtype=np.int64)),
        keys=_texts(arrays["key"]),
        motion=_optional(arrays, "motion", device),
        motion_confidence=_optional(arrays, "motion_confidence", device),
        layout=_layout(arrays, device),
    )


def to_latent_batch(arrays: Mapping[str, np.ndarray], device: torch.device) -> LatentBatch:
    """Columns of a stream as a batch; they travel as stored and become float32 on the device."""
    text, mask = None, None
    if "text" in arrays:
        real = np.asarray(arrays["text_mask"], dtype=bool)
        longest = int(real.sum(1).max())
        text = _floats(arrays["text"][:, :longest], device)
        mask = _tensor(real[:, :longest]).to(device)
    return LatentBatch(
        latent=_floats(arrays["latent"], device),
        motion=_floats(arrays["motion"], device),
        motion_confidence=_floats(arrays["motion_confidence"], device),
        captions=_texts(arrays["caption"]),
        positions=torch.from_numpy(np.array(arrays["position"], dtype=np.int64)),
        keys=_texts(arrays["key"]),
        text=text,
        text_mask=mask,
        style=_style(arrays, device),
        layout=_layout(arrays, device),
    )


def write_member(tensors: Mapping[str, Tensor]) -> bytes:
    """The member of one sample's latents; the same tensors give the same bytes."""
    return save({name: value.contiguous() for name, value in tensors.items()})


def _style(arrays: Mapping[str, np.ndarray], device: torch.device) -> StyleReference | None:
    if "reference" not in arrays:
        return None
    known = torch.from_numpy(np.array(arrays["has_reference"])).to(device)
    return StyleReference(
        statistics=style_statistics(_floats(arrays["reference"], device)), known=known
    )


def _layout(arrays: Mapping[str, np.ndarray], device: torch.device) -> Layout | None:
    return to_layout(arrays["boxes"], arrays["labels"], device) if "boxes" in arrays else None


def to_layout(
    boxes: Float[np.ndarray, "B O t 4"], labels: Integer[np.ndarray, "B O"], device: torch.device
) -> Layout:
    """Clips' `hstvg.scene.layout.Places`, stacked."""
    numbers = np.asarray(labels, dtype=np.int64)
    return Layout(
        boxes=_floats(boxes, device),
        present=torch.from_numpy(numbers >= 0).to(device),
        labels=tuple(tuple(LABELS[n] if n >= 0 else "" for n in clip) for clip in numbers.tolist()),
    )


def _optional(arrays: Mapping[str, np.ndarray], name: str, device: torch.device) -> Tensor | None:
    return _floats(arrays[name], device) if name in arrays else None


def _floats(array: np.ndarray, device: torch.device) -> Tensor:
    """float32 on the device, copied once: small numbers travel, and become floats there."""
    values = _tensor(array).to(device, non_blocking=True)
    values = values.view(torch.bfloat16) if values.dtype == torch.int16 else values
    return values.to(torch.float32, copy=True)


def _tensor(array: np.ndarray) -> Tensor:
    """The array's own memory, which is read-only where it lies in the object store."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def _texts(values: Sequence[object] | np.ndarray) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
