"""Latents as they lie in a shard: one safetensors member per sample, its windows side by side.

Read without torch, whose import would cost every data task a second and its memory.

Axes      K windows of the clip, C t h w the tokenizer's latent, L text tokens, D text width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError, deserialize

from hstvg.data.sample import Window, read_clip

DTYPES = {
    "fp32": ("F32", np.dtype(np.float32)),
    "bf16": ("BF16", np.dtype(np.int16)),
    "fp16": ("F16", np.dtype(np.float16)),
}
"""By our name, that of safetensors and numpy's, which holds the bits of bfloat16 as integers."""
LARGEST_HEADER = 1 << 12
"""Bytes. Four names with their shapes need a tenth of it."""


@dataclass(frozen=True, kw_only=True)
class LatentLayout:
    """The names, shapes and type of the tensors in every member of one data set."""

    windows: int
    """K."""
    channels: int
    """C."""
    size: tuple[int, int, int]
    """t, h, w."""
    dtype: str
    """A key of DTYPES."""
    text_width: int = 0
    """D; 0 where captions are not encoded."""
    text_tokens: int = 0
    """L of the longest caption."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors that are the same in every member, which `text` is not."""
        return {
            "latent": (self.windows, self.channels, *self.size),
            "motion": (self.windows, 2, *self.size),
            "motion_confidence": (self.windows, 1, *self.size),
        }

    def window_at(self, share: float) -> int:
        """Number of the window that stands at `share`, 0 to 1, of a member."""
        return min(int(share * self.windows), self.windows - 1)

    @property
    def latent_bytes(self) -> int:
        """Of the latent of one window."""
        return DTYPES[self.dtype][1].itemsize * self.channels * int(np.prod(self.size))

    @property
    def clip_bytes(self) -> int:
        """Of one window with its text, as it travels to a worker."""
        cells = (self.channels + 3) * int(np.prod(self.size))
        item = DTYPES[self.dtype][1].itemsize
        return item * (cells + self.text_tokens * self.text_width) + self.text_tokens

    @property
    def most_bytes(self) -> int:
        """Of a member."""
        return LARGEST_HEADER + self.windows * self.clip_bytes


def read_windows(
    video: bytes,
    *,
    duration_s: float,
    scene: Mapping[str, object] | None,
    window: Window,
    count: int,
) -> dict[str, np.ndarray]:
    """Windows of a clip, evenly spread over it, and their motion: `read_clip`'s arrays, stacked.

    Raises:
        ValueError: a member is damaged.
    """
    clips = [
        read_clip(
            video,
            duration_s=duration_s,
            scene=scene,
            window=window,
            start=start_of(k, count),
            motion=True,
            decoder="pyav",
        )
        for k in range(count)
    ]
    return {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}


def start_of(k: int, count: int) -> float:
    """Where window k of `count` lies among its possible starts, 0 to 1."""
    return (k + 0.5) / count


def read_member(member: bytes, layout: LatentLayout, share: float) -> dict[str, np.ndarray]:
    """One window of a sample.

    Args:
        share: 0 to 1; which of the windows.

    Returns:
        latent, C t h w; motion and motion_confidence, 2 and 1 t h w; and where captions are
        encoded `text`, L D, and `text_mask`, L, with L that of the longest caption. bfloat16,
        which numpy has not, as the int16 of the same bits.

    Raises:
        ValueError: the member does not hold what the layout says.
    """
    tensors = _checked(member, layout)
    k = layout.window_at(share)
    arrays = {name: tensors[name][k] for name in layout.shapes}
    if layout.text_width:
        text = tensors["text"]
        padding = layout.text_tokens - len(text)
        arrays["text"] = np.pad(text, ((0, padding), (0, 0)))
        arrays["text_mask"] = np.arange(layout.text_tokens) < len(text)
    return arrays


def _checked(member: bytes, layout: LatentLayout) -> dict[str, np.ndarray]:
    if len(member) > layout.most_bytes:
        raise ValueError(f"{len(member)} bytes of latents; at most {layout.most_bytes} are read")
    try:
        tensors = dict(deserialize(member))
    except SafetensorError as error:
        raise ValueError(f"no safetensors: {error}") from error
    names = {*layout.shapes, *(["text"] if layout.text_width else [])}
    if tensors.keys() != names:
        raise ValueError(f"holds {sorted(tensors)}, not {sorted(names)}")
    stored, dtype = DTYPES[layout.dtype]
    for name, value in tensors.items():
        if value["dtype"] != stored:
            raise ValueError(f"{name} is {value['dtype']}, not {stored}")
        want = layout.shapes.get(name)
        if want is not None and tuple(value["shape"]) != want:
            raise ValueError(f"{name} is {value['shape']}, not {list(want)}")
    if layout.text_width:
        shape = tensors["text"]["shape"]
        fits = len(shape) == 2 and shape[1] == layout.text_width
        if not fits or not 0 < shape[0] <= layout.text_tokens:
            most = [layout.text_tokens, layout.text_width]
            raise ValueError(f"text is {shape}, not at most {most}")
    return {
        name: np.frombuffer(value["data"], dtype).reshape(value["shape"])
        for name, value in tensors.items()
    }
