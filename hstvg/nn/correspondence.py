"""Where a cell's content went: asked of heads of attention, or of the cells themselves.

Proposal Hierarchical Video Generation, temporal attention. Tracks can teach a video generator where
things go. CorrespondenceAttention teaches heads of their own, beside those that the network uses as
it likes; CellLikeness what the cells say themselves (after arXiv 2412.06016).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hstvg.nn.attention import Heads
from hstvg.nn.conv import zero_init
from hstvg.nn.norm import ChannelNorm

TEMPERATURE = 0.07
"""By which cosines are divided before a softmax (arXiv 1911.05722)."""


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
        if lookup is None:
            return out, None
        return out, _rows(q * q.shape[-1] ** -0.5, k, lookup, frames=x.shape[2])


class CellLikeness(nn.Module):
    """The same, asked of the cells as they are: without weights, and nothing is added to them."""

    def forward(
        self, x: Float[Tensor, "B D t h w"], lookup: Lookup | None = None
    ) -> tuple[Float[Tensor, "B D t h w"], Float[Tensor, "B S 1 cells"] | None]:
        """As of CorrespondenceAttention, as if of one head."""
        if lookup is None:
            return x, None
        cells = F.normalize(x.flatten(2).transpose(1, 2).float(), dim=-1)[:, None]
        return x, _rows(cells / TEMPERATURE, cells, lookup, frames=x.shape[2])


def _rows(
    q: Float[Tensor, "B A N d"], k: Float[Tensor, "B A N d"], lookup: Lookup, frames: int
) -> Float[Tensor, "B S A cells"]:
    """Rows of an attention, restricted to the frame asked for: where to look if at all."""
    q, k = (part.unflatten(2, (frames, -1)).float() for part in (q, k))  # B A t cells d
    clip = torch.arange(len(q), device=q.device)[:, None]
    asked = q[clip, :, lookup.frame, lookup.cell]  # B S A d
    offered = k[clip, :, lookup.later]  # B S A cells d
    return torch.einsum("bsad,bsacd->bsac", asked, offered).log_softmax(-1)
