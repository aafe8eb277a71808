"""Exchange of resolution for channels, and the learned steps between two resolutions."""

from math import sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Factor(NamedTuple):
    """How many cells of each axis (time, rows, columns) merge into one."""

    t: int
    h: int
    w: int

    @property
    def volume(self) -> int:
        return self.t * self.h * self.w


def to_depth(x: Float[Tensor, "B C T H W"], factor: Factor) -> Float[Tensor, "B Cf t h w"]:
    """Fold blocks of `factor` cells into channels."""
    B, C, T, H, W = x.shape
    t, h, w = factor
    x = x.reshape(B, C, T // t, t, H // h, h, W // w, w)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(B, C * t * h * w, T // t, H // h, W // w)


def from_depth(x: Float[Tensor, "B Cf t h w"], factor: Factor) -> Float[Tensor, "B C T H W"]:
    """Undo to_depth."""
    B, Cf, T, H, W = x.shape
    t, h, w = factor
    C = Cf // factor.volume
    x = x.reshape(B, C, t, h, w, T, H, W)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(B, C, T * t, H * h, W * w)


def haar(x: Float[Tensor, "B Cf t h w"], factor: Factor) -> Float[Tensor, "B Cf t h w"]:
    """The Haar wavelet coefficients of blocks that `to_depth` folded; its own inverse.

    Args:
        factor: 1 or 2 per axis.
    """
    turn = torch.ones(1, 1, device=x.device, dtype=x.dtype)
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=x.device, dtype=x.dtype) / sqrt(2)
    for n in factor:
        turn = torch.kron(turn, step) if n == 2 else turn
    blocks = x.unflatten(1, (-1, factor.volume))
    return torch.einsum("ij,bcj...->bci...", turn, blocks).flatten(1, 2)


class Down(nn.Module):
    """Fold a block into channels and mix them linearly; causal, since blocks do not overlap."""

    def __init__(self, channels_in: int, channels_out: int, factor: Factor) -> None:
        super().__init__()
        self.factor = factor
        self.mix = nn.Conv3d(channels_in * factor.volume, channels_out, 1)

    def forward(self, x: Float[Tensor, "B Ci T H W"]) -> Float[Tensor, "B Co t h w"]:
        return self.mix(to_depth(x, self.factor))


class Up(nn.Module):
    """One linear map to a block's worth of channels, unfolded into space and time."""

    def __init__(self, channels_in: int, channels_out: int, factor: Factor) -> None:
        super().__init__()
        self.factor = factor
        self.mix = nn.Conv3d(channels_in, channels_out * factor.volume, 1)

    def forward(self, x: Float[Tensor, "B Ci t h w"]) -> Float[Tensor, "B Co T H W"]:
        return from_depth(self.mix(x), self.factor)
