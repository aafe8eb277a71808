"""Attention of the cells of a block to all that they may know, in one softmax.

That is the text, what earlier blocks left behind, the pages of their own block and its cells;
`hstvg.nn.reach` says who sees whom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.attention import Heads, largest_divisor, to_windows
from hstvg.nn.conv import zero_init
from hstvg.nn.embed import rotary_angles, rotate
from hstvg.nn.norm import ChannelNorm
from hstvg.nn.resample import Factor
from hstvg.nn.transformer import attend

PATCH = 2
"""Rows and columns of a page's summaries, each of which says what is at its place: one for all of
a page would be a mean over the picture, in which a small thing is lost."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What is the same for all layers on one grid."""

    page: Factor
    """Cells per summary of a page."""
    cells: Float[Tensor, "N half"]
    """Angles of the cells, and of the summaries."""
    pages: Float[Tensor, "P half"]
    mask: Any
    """Of `Reach`; its keys are the text, the past, the pages and the cells."""


class Summary(nn.Module):
    """One token per patch of cells, W sum_j softmax(u . c)_j c_j: at first that of their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = zero_init(nn.Linear(width, 1, bias=False))
        self.map = nn.Linear(width, width)

    def forward(self, cells: Float[Tensor, "B D t h w"], patch: Factor) -> Float[Tensor, "B P D"]:
        patches = to_windows(cells, patch).unflatten(0, (len(cells), -1))
        share = self.score(patches).softmax(dim=2)
        return self.map((share * patches).sum(2))


class KeyValue(nn.Module):
    """Keys, RMS-normed, and values of tokens that ask nothing themselves."""

    def __init__(self, token_width: int, inner: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.map = nn.Linear(token_width, 2 * inner, bias=False)
        self.gain = nn.Parameter(torch.ones(head_dim))

    def forward(
        self, tokens: Float[Tensor, "B M E"]
    ) -> tuple[Float[Tensor, "B A M d"], Float[Tensor, "B A M d"]]:
        split = self.map(tokens).unflatten(-1, (2, -1, self.head_dim))  # B M 2 A d
        k, v = split.permute(2, 0, 3, 1, 4)
        return F.rms_norm(k, (self.head_dim,), self.gain.to(k.dtype), eps=1e-6), v


class PagedAttention(nn.Module):
    """Residual attention of every cell to text, past, pages and cells; silent at first.

    Args:
        text_width: of the text's tokens; those of the past are as wide as the cells.
    """

    def __init__(self, width: int, text_width: int, *, head_dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.summary = Summary(width)
        self.heads = Heads(width, width, head_dim)
        self.text = KeyValue(text_width, width, head_dim)
        self.past = KeyValue(width, width, head_dim)
        self.leave = zero_init(nn.Linear(width, width))

    def forward(
        self,
        x: Float[Tensor, "B D t h w"],
        text: Float[Tensor, "B L E"],
        past: tuple[Float[Tensor, "B A M d"], Float[Tensor, "B A M d"]] | None,
        view: View,
    ) -> Float[Tensor, "B D t h w"]:
        """Args:
        past: keys, rotated, and values of earlier blocks, made by `past`; None at the first one.
        """
        normed = self.norm(x)
        cells = normed.flatten(2).transpose(1, 2)
        own = torch.cat([self.summary(normed, view.page), cells], dim=1)
        q, k, v = self.heads(cells, own)
        q, k = rotate(q, view.cells), rotate(k, torch.cat([view.pages, view.cells]))
        known = [self.text(text), (k, v)] if past is None else [self.text(text), past, (k, v)]
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*known, strict=True))
        mixed = self.leave(attend(q, keys, values, view.mask).transpose(1, 2).flatten(-2))
        return x + mixed.transpose(1, 2).reshape(x.shape)


def page_on(size: Sequence[int], page: int) -> Factor:
    """Cells per summary of a page: the most frames, up to a page of them, that tile the grid, by
    PATCH rows and columns where that tiles it.

    Args:
        page: frames of this grid.
    """
    return Factor(*(largest_divisor(n, m) for n, m in zip(size, (page, PATCH, PATCH), strict=True)))


def places(
    size: Sequence[int],
    page: Factor,
    reference: Sequence[int],
    head_dim: int,
    device: torch.device,
    start: int = 0,
) -> tuple[Float[Tensor, "N half"], Float[Tensor, "P half"]]:
    """Angles of the cells of a grid and of the summaries of its pages, which stand in the middle
    of what they sum up.

    Args:
        reference, start: as of rotary_angles.
    """
    pages = [n // m for n, m in zip(size, page, strict=True)]
    return (
        rotary_angles(size, reference, head_dim, device, start),
        rotary_angles(pages, reference, head_dim, device, start),
    )
