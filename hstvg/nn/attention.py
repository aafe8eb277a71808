"""Attention over the cells of a video latent: in windows, over the whole grid, to a coarser grid,
and to a text."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hstvg.nn.conv import zero_init
from hstvg.nn.embed import rotary_angles, rotate
from hstvg.nn.norm import ChannelNorm
from hstvg.nn.resample import Factor


class Heads(nn.Module):
    """Queries, keys and values with RMS-normed queries and keys (arXiv 2302.05442).

    Args:
        inner: channels of all heads together; as many as `width` if not said.
    """

    def __init__(
        self, width: int, context_width: int, head_dim: int, inner: int | None = None
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        inner = width if inner is None else inner
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(context_width, 2 * inner, bias=False)
        self.gain_q = nn.Parameter(torch.ones(head_dim))
        self.gain_k = nn.Parameter(torch.ones(head_dim))

    def forward(
        self, x: Float[Tensor, "B N D"], context: Float[Tensor, "B L E"]
    ) -> tuple[Float[Tensor, "B A N d"], Float[Tensor, "B A L d"], Float[Tensor, "B A L d"]]:
        q = self._split(self.query(x))
        k, v = (self._split(part) for part in self.key_value(context).chunk(2, dim=-1))
        q = F.rms_norm(q, (self.head_dim,), self.gain_q.to(q.dtype), eps=1e-6)
        k = F.rms_norm(k, (self.head_dim,), self.gain_k.to(k.dtype), eps=1e-6)
        return q, k, v

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class SpaceTimeAttention(nn.Module):
    """Residual self-attention among the cells of each window of the grid.

    Args:
        window: most cells per axis of a window, which is the largest that tiles the grid; None
            attends over the whole grid.
        reference: (t, h, w) of the final latent grid, for coordinates shared between scales.
    """

    def __init__(
        self, width: int, *, head_dim: int, window: int | None, reference: Sequence[int]
    ) -> None:
        super().__init__()
        self.window = window
        self.reference = tuple(reference)
        self.norm = ChannelNorm(width)
        self.heads = Heads(width, width, head_dim)
        self.leave = zero_init(nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "B D t h w"]) -> Float[Tensor, "B D t h w"]:
        size = x.shape[2:]
        window = Factor(*(largest_divisor(n, self.window or n) for n in size))
        cells = to_windows(self.norm(x), window)
        q, k, v = self.heads(cells, cells)
        angles = rotary_angles(size, self.reference, self.heads.head_dim, x.device)
        angles = to_windows(angles.T.reshape(1, -1, *size), window).repeat(len(x), 1, 1)
        q, k = rotate(q, angles[:, None]), rotate(k, angles[:, None])
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return x + from_windows(self.leave(mixed), window, size)


class TextAttention(nn.Module):
    """Residual cross-attention from every cell to the tokens of the text."""

    def __init__(self, width: int, text_width: int, *, head_dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.heads = Heads(width, text_width, head_dim)
        self.leave = zero_init(nn.Linear(width, width))

    def forward(
        self,
        x: Float[Tensor, "B D t h w"],
        text: Float[Tensor, "B L E"],
        mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B D t h w"]:
        q, k, v = self.heads(self.norm(x).flatten(2).transpose(1, 2), text)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        mixed = self.leave(mixed.transpose(1, 2).flatten(-2))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class CoarseAttention(nn.Module):
    """Residual attention by one head from every cell to those of a coarser grid over the same clip.

    Args:
        reference: (t, h, w) of the final latent grid, for coordinates shared between scales.
    """

    def __init__(
        self, width: int, coarse_width: int, *, head_dim: int, reference: Sequence[int]
    ) -> None:
        super().__init__()
        self.reference = tuple(reference)
        self.norm, self.norm_coarse = ChannelNorm(width), ChannelNorm(coarse_width)
        self.heads = Heads(width, coarse_width, head_dim, inner=head_dim)
        self.leave = zero_init(nn.Linear(head_dim, width))

    def forward(
        self, x: Float[Tensor, "B D t h w"], coarse: Float[Tensor, "B E t2 h2 w2"]
    ) -> Float[Tensor, "B D t h w"]:
        cells = (self.norm(x), self.norm_coarse(coarse))
        q, k, v = self.heads(*(part.flatten(2).transpose(1, 2) for part in cells))
        fine, rough = (
            rotary_angles(part.shape[2:], self.reference, self.heads.head_dim, x.device)
            for part in cells
        )
        mixed = F.scaled_dot_product_attention(rotate(q, fine), rotate(k, rough), v)
        mixed = self.leave(mixed.transpose(1, 2).flatten(-2))
        return x + mixed.transpose(1, 2).reshape(x.shape)


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to `limit`."""
    return max(d for d in range(1, min(n, limit) + 1) if n % d == 0)


def to_windows(x: Float[Tensor, "B D t h w"], window: Factor) -> Float[Tensor, "BW N D"]:
    """Cut the grid into windows; each becomes a sequence of its cells."""
    B, D, t, h, w = x.shape
    a, b, c = window
    x = x.reshape(B, D, t // a, a, h // b, b, w // c, c)
    return x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(-1, window.volume, D)


def from_windows(
    x: Float[Tensor, "BW N D"], window: Factor, size: Sequence[int]
) -> Float[Tensor, "B D t h w"]:
    """Undo to_windows."""
    (t, h, w), (a, b, c), D = size, window, x.shape[-1]
    x = x.reshape(-1, t // a, h // b, w // c, a, b, c, D)
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(-1, D, t, h, w)
