"""CorrespondenceAttention: attention that may be asked where a cell's content went.

Proposal Hierarchical Video Generation, temporal attention. Tracks can teach a video generator where
things go (arXiv 2412.06016); here they teach heads of their own, beside those that the network
uses as it likes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hstvg.nn.attention import Heads
from hstvg.nn.conv import zero_init
from hstvg.nn.norm import ChannelNorm


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """Cells of a grid whose content is to be found again in a later frame."""

    frame: Int[Tensor, "B S"]
    cell: Int[Tensor, "B S"]
    """Row after row within the frame."""
    later: Int[Tensor, "B S"]
    """The frame in which it is looked for."""


class CorrespondenceAttention(nn.Module):
    """Residual attention over the whole grid by a few heads, which give nothing at first.

    There are no rotary angles: where a thing is found should depend on what it looks like.

    Args:
        heads: how many, of `head_dim` channels each.
    """

    def __init__(self, width: int, *, head_dim: int, heads: int = 2) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.heads = Heads(width, width, head_dim, inner=heads * head_dim)
        self.leave = zero_init(nn.Linear(heads * head_dim, width))

    def forward(
        self, x: Float[Tensor, "B D t h w"], lookup: Lookup | None = None
    ) -> tuple[Float[Tensor, "B D t h w"], Float[Tensor, "B S A cells"] | None]:
        """The cells, and if anything is looked up the log probability of each cell of the later
        frame, as each head sees it."""
        cells = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.heads(cells, cells)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        out = x + self.leave(mixed).transpose(1, 2).reshape(x.shape)
        return out, None if lookup is None else self._rows(q, k, lookup, frames=x.shape[2])

    @staticmethod
    def _rows(
        q: Float[Tensor, "B A N d"], k: Float[Tensor, "B A N d"], lookup: Lookup, frames: int
    ) -> Float[Tensor, "B S A cells"]:
        """Rows of the attention, restricted to the frame asked for: where to look if at all."""
        q, k = (part.unflatten(2, (frames, -1)).float() for part in (q, k))  # B A t cells d
        clip = torch.arange(len(q), device=q.device)[:, None]
        asked = q[clip, :, lookup.frame, lookup.cell]  # B S A d
        offered = k[clip, :, lookup.later]  # B S A cells d
        logits = torch.einsum("bsad,bsacd->bsac", asked, offered) * q.shape[-1] ** -0.5
        return logits.log_softmax(-1)
