"""Factorised space-time convolutions: (1,3,3) in space, then (3,1,1) in time."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.norm import ChannelNorm

Layer = TypeVar("Layer", nn.Conv3d, nn.Linear)


class TimeCache(dict[nn.Module, Tensor]):
    """What each causal layer remembers of the frames before, while a video goes through in chunks.

    One belongs to one pass over one video; empty, it stands for the video's beginning.
    """


class FactorisedConv(nn.Module):
    """A 3x3 convolution inside each frame followed by one of 3 over frames.

    Args:
        causal: pad time on the left only, so that frame i sees frames <= i.
    """

    def __init__(self, channels_in: int, channels_out: int, *, causal: bool) -> None:
        super().__init__()
        self.space = nn.Conv3d(channels_in, channels_out, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(channels_out, channels_out, (3, 1, 1))
        self.time_padding = (2, 0) if causal else (1, 1)

    def forward(
        self, x: Float[Tensor, "B Ci t h w"], past: TimeCache | None = None
    ) -> Float[Tensor, "B Co t h w"]:
        """Args:
        past: of a causal layer, whose frames come in chunks.
        """
        # Channels last: the norms and attentions around read a position's channels together.
        x = x.contiguous(memory_format=torch.channels_last_3d)
        x = self.space(x)
        if past is None or self not in past:
            x = F.pad(x, (0, 0, 0, 0, *self.time_padding))
        else:
            x = torch.cat([past[self], x], dim=2)
        if past is not None:
            past[self] = x[:, :, -2:].clone()  # a view would keep the whole chunk
        return self.time(x)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the last convolution starting at zero."""

    def __init__(self, channels: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.conv1 = FactorisedConv(channels, channels, causal=causal)
        self.norm2 = ChannelNorm(channels)
        self.conv2 = FactorisedConv(channels, channels, causal=causal)
        zero_init(self.conv2.time)

    def forward(
        self, x: Float[Tensor, "B C t h w"], past: TimeCache | None = None
    ) -> Float[Tensor, "B C t h w"]:
        residual = self.conv1(F.silu(self.norm1(x)), past)
        return x + self.conv2(F.silu(self.norm2(residual)), past)


def zero_init(layer: Layer) -> Layer:
    """Set a layer's weights to zero: its branch starts as the identity or as silence."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
