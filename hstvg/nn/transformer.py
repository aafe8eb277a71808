"""A transformer over blocks of tokens that are written one after another.

Every token belongs to a step; it attends to all tokens of its own step and of the steps before it.
The same layers read a whole sequence at once, when it is known, or one block after another with the
keys and values of the ones before in a memory.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hstvg.nn.attention import Heads
from hstvg.nn.conv import zero_init
from hstvg.nn.embed import rotate


@dataclass(frozen=True, kw_only=True)
class Order:
    """Who may attend to whom."""

    query: Int[Tensor, "N"]
    """Step of each query."""
    key: Int[Tensor, "M"]
    """Step of each key."""
    real: Bool[Tensor, "B M"]
    """False at keys that nobody may see: padding, or a block that a clip has not."""

    def dense(self) -> Bool[Tensor, "B 1 N M"]:
        reach = self.key[None, :] <= self.query[:, None]
        return reach[None, None] & self.real[:, None, None, :]

    def blocks(self) -> Any:
        """The same as a BlockMask of FlexAttention."""
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(
            lambda b, h, q, k: (self.key[k] <= self.query[q]) & self.real[b, k],
            len(self.real),
            None,
            len(self.query),
            len(self.key),
            device=self.key.device,
        )


class Memory:
    """Keys and values of the tokens before, for one layer; keys as they are after rotation."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.keeps = True
        """Whether what is new is kept for later."""

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, with new ones at their end."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        if self.keeps:
            self.keys, self.values = keys, values
        return keys, values


class TransformerLayer(nn.Module):
    """Attention and a gated feed-forward (SwiGLU, arXiv 2002.05202), each adaptively normalised.

    Scale, shift and gate come from one map shared by all layers, plus a table of the layer's own
    (arXiv 2310.00426); gates start at zero, and with them the layer as the identity.
    """

    def __init__(self, width: int, *, head_dim: int, expansion: float = 8 / 3) -> None:
        super().__init__()
        hidden = int(width * expansion / 16 + 1) * 16
        self.heads = Heads(width, width, head_dim)
        self.mix = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.table = nn.Parameter(torch.zeros(6, width))

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        modulation: Float[Tensor, "B 6 D"],
        angles: Float[Tensor, "N half"],
        mask: Any,
        memory: Memory | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Args:
        mask: of `dense` or `blocks`; None lets all see all.
        """
        parts = (modulation + self.table.to(modulation.dtype))[:, :, None].unbind(1)
        scale1, shift1, gate1, scale2, shift2, gate2 = parts
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
        q, k, v = self.heads(normed, normed)
        q, k = rotate(q, angles), rotate(k, angles)
        if memory is not None:
            k, v = memory.extend(k, v)
        x = x + gate1 * self.mix(attend(q, k, v, mask).transpose(1, 2).flatten(-2))
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        gate, up = self.gate_up(normed).chunk(2, dim=-1)
        return x + gate2 * self.down(F.silu(gate) * up)


class Modulation(nn.Module):
    """The map shared by all layers, from a signal to their scales, shifts and gates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = zero_init(nn.Linear(width, 6 * width))

    def forward(self, signal: Float[Tensor, "B D"]) -> Float[Tensor, "B 6 D"]:
        return self.map(F.silu(signal)).unflatten(-1, (6, -1))


def attend(
    q: Float[Tensor, "B A N d"], k: Float[Tensor, "B A M d"], v: Float[Tensor, "B A M d"], mask: Any
) -> Float[Tensor, "B A N d"]:
    """Attention by whichever kernel the mask is made for."""
    if mask is None or isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return _flex(q.is_cuda)(q, k, v, block_mask=mask)


@cache
def _flex(compiled: bool) -> Any:
    """FlexAttention (arXiv 2412.05496); it is fast compiled alone, which pays on a GPU alone."""
    from torch.nn.attention.flex_attention import flex_attention

    # Captions make every batch of another length, so shapes may not be compiled in.
    return torch.compile(flex_attention) if compiled else flex_attention
