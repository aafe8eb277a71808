"""Between arrays and tensors: columns of a stream as batches, latents as members of a shard."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from hstvg.types import LatentBatch, VideoBatch


def to_batch(arrays: Mapping[str, np.ndarray], fps: float, device: torch.device) -> VideoBatch:
    """Columns of a stream as a batch; pixels travel as uint8 and are normalised on the device."""
    pixels = _tensor(arrays["pixels"], device).permute(0, 4, 1, 2, 3)
    return VideoBatch(
        pixels=pixels.float() / 127.5 - 1,
        fps=torch.full((len(pixels),), float(fps), device=device),
        captions=_texts(arrays["caption"]),
        positions=torch.from_numpy(np.array(arrays["position"], dtype=np.int64)),
        keys=_texts(arrays["key"]),
        motion=_optional(arrays, "motion", device),
        motion_confidence=_optional(arrays, "motion_confidence", device),
    )


def to_latent_batch(arrays: Mapping[str, np.ndarray], device: torch.device) -> LatentBatch:
    """Columns of a stream as a batch; they travel as stored and become float32 on the device."""
    text, mask = None, None
    if "text" in arrays:
        real = np.asarray(arrays["text_mask"], dtype=bool)
        longest = int(real.sum(1).max())
        text = _floats(arrays["text"][:, :longest], device)
        mask = _tensor(real[:, :longest], device)
    return LatentBatch(
        latent=_floats(arrays["latent"], device),
        motion=_floats(arrays["motion"], device),
        motion_confidence=_floats(arrays["motion_confidence"], device),
        captions=_texts(arrays["caption"]),
        positions=torch.from_numpy(np.array(arrays["position"], dtype=np.int64)),
        keys=_texts(arrays["key"]),
        text=text,
        text_mask=mask,
    )


def write_member(tensors: Mapping[str, Tensor]) -> bytes:
    """The member of one sample's latents; the same tensors give the same bytes."""
    return save({name: value.contiguous() for name, value in tensors.items()})


def _optional(arrays: Mapping[str, np.ndarray], name: str, device: torch.device) -> Tensor | None:
    return _tensor(arrays[name], device).float() if name in arrays else None


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    # Arrays from the object store are read-only; torch only reads them here.
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array).to(device, non_blocking=True)


def _texts(values: Sequence[object] | np.ndarray) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def _floats(array: np.ndarray, device: torch.device) -> Tensor:
    values = _tensor(array, device)
    return (values.view(torch.bfloat16) if values.dtype == torch.int16 else values).float()
