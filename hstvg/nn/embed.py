"""Embeddings of a time and of a place."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def embed_time(tau: Float[Tensor, "B"], dim: int) -> Float[Tensor, "B D"]:
    """Sines and cosines of tau in [0, 1] at geometric frequencies from 1 to 1000 radians."""
    frequencies = torch.logspace(0, 3, dim // 2, device=tau.device)
    angles = tau.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def rotary_angles(
    size: Sequence[int],
    reference: Sequence[int],
    dim: int,
    device: torch.device,
    start: int = 0,
) -> Float[Tensor, "N half"]:
    """Angles of an axial 3D rotary embedding (arXiv 2104.09864), one row per cell of a grid.

    Coordinates are those of the `reference` grid, ((i + 1/2) R / n - 1/2), so that cells which
    cover the same place share a phase at every scale.

    Args:
        size: (t, h, w) of the grid.
        reference: (t, h, w) of the final grid.
        dim: channels per head; its pairs are dealt to the three axes.
        start: first frame of the final grid that the grid covers.
    """
    pairs = dim // 2
    per_axis = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    axes = []
    for count, n, final, first in zip(per_axis, size, reference, (start, 0, 0), strict=True):
        place = (torch.arange(n, device=device) + 0.5) * final / n - 0.5 + first
        frequencies = math.pi / 2 * 100.0 ** -(torch.arange(count, device=device) / max(count, 1))
        axes.append(place[:, None] * frequencies)
    t, h, w = size
    grid = [
        axes[0][:, None, None].expand(t, h, w, -1),
        axes[1][None, :, None].expand(t, h, w, -1),
        axes[2][None, None, :].expand(t, h, w, -1),
    ]
    return torch.cat(grid, dim=-1).reshape(t * h * w, pairs)


def rotate(
    x: Float[Tensor, "B A N D"], angles: Float[Tensor, "*#B N half"]
) -> Float[Tensor, "B A N D"]:
    """Turn each channel pair of x by its angle."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
