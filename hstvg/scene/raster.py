"""A layout on the grid of a latent: which cells its boxes cover, and its frames."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.scene.layout import middles
from hstvg.types import Layout


def raster(layout: Layout, size: tuple[int, int]) -> Float[Tensor, "B O t h w"]:
    """Share of each cell that each box covers, 0 to 1; 0 where there is no object.

    Args:
        size: rows and columns of the frame's cells.
    """
    rows, columns = size
    x0, y0, x1, y1 = layout.boxes.unbind(-1)
    across, down = _shares(x0, x1, columns), _shares(y0, y1, rows)
    cover = down[..., :, None] * across[..., None, :]
    return cover * layout.present[:, :, None, None, None]


def in_latent_frames(layout: Layout, latent_frames: int) -> Layout:
    """The layout of a clip's frames in the middle of each frame of its latent.

    Raises:
        ValueError: a clip of so many frames has no such latent.
    """
    boxes = layout.boxes
    # A middle is a frame, or half-way between two.
    middle = torch.from_numpy(middles(boxes.shape[2], latent_frames))
    before, after = (place.long().to(boxes.device) for place in (middle.floor(), middle.ceil()))
    return replace(layout, boxes=(boxes[:, :, before] + boxes[:, :, after]) / 2)


def _shares(
    low: Float[Tensor, "B O t"], high: Float[Tensor, "B O t"], count: int
) -> Float[Tensor, "B O t n"]:
    """Share of each of `count` equal parts of [0, 1] that lies between low and high."""
    starts = torch.arange(count, device=low.device, dtype=low.dtype)
    left = torch.maximum(low[..., None] * count, starts)
    right = torch.minimum(high[..., None] * count, starts + 1)
    return (right - left).clamp(min=0)
