"""Cues: what a denoiser may be told of a clip, beside time, level and text.

A cue speaks in up to three ways: as channels beside x, as a vector that modulates every block, and
as tokens that the attending cells read in a cross-attention of their own, decoupled from that to
the text (arXiv 2308.06721). Where nothing is known, nothing is said: channels and tokens are 0.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.attention import Heads
from hstvg.nn.conv import zero_init
from hstvg.nn.embed import embed_time
from hstvg.nn.norm import ChannelNorm
from hstvg.types import Condition


class Cue(nn.Module):
    """One kind of thing that may be told; it overrides the ways in which it speaks."""

    channels = 0
    """Beside x."""
    token_width = 0
    """0 if it has no tokens."""

    def beside(
        self, x: Float[Tensor, "B C t h w"], condition: Condition
    ) -> Float[Tensor, "B Cb t h w"]:
        """What is known, on the grid of x."""
        return x[:, :0]

    def signal(
        self, signal: Float[Tensor, "B D"], condition: Condition
    ) -> Float[Tensor, "B D"] | None:
        """What is added to a signal."""
        return None

    def tokens(
        self, signal: Float[Tensor, "B D"], condition: Condition
    ) -> Float[Tensor, "B N E"] | None:
        """Of the precision of the signal."""
        return None


class Amount(nn.Module):
    """A number from 0 to 1 as a vector, which says nothing at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width))

    def forward(self, amount: Float[Tensor, "B"] | None, signal: Tensor) -> Float[Tensor, "B D"]:
        """Args:
        amount: None stands for 0.
        """
        amount = signal.new_zeros(len(signal)) if amount is None else amount
        return F.linear(embed_time(amount, signal.shape[1]).to(signal.dtype), self.weight)


class MovingNoiseCue(Cue):
    """How much of the noise moves, the alpha of the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = Amount(width)

    def signal(
        self, signal: Float[Tensor, "B D"], condition: Condition
    ) -> Float[Tensor, "B D"] | None:
        return self.alpha(condition.alpha, signal)


class CueAttention(nn.Module):
    """What every cell takes from the tokens of a cue; nothing from tokens that are 0."""

    def __init__(self, width: int, token_width: int, *, head_dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.heads = Heads(width, token_width, head_dim)
        # Without a bias, as the heads are: values of 0 have to stay 0.
        self.leave = zero_init(nn.Linear(width, width, bias=False))

    def forward(
        self, x: Float[Tensor, "B D t h w"], tokens: Float[Tensor, "B N E"]
    ) -> Float[Tensor, "B D t h w"]:
        q, k, v = self.heads(self.norm(x).flatten(2).transpose(1, 2), tokens)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return self.leave(mixed).transpose(1, 2).reshape(x.shape)
