"""Who sees whom among the frames, pages and blocks of a video.

A video is written block by block; a page is a run of frames of a block. There are four kinds of
token: cells, summaries of pages, summaries of blocks, and words. Inside a block all directions are
open, from block to block only the one from earlier to later, so what a block says of itself can be
kept for those after it. Windows and global tokens after arXiv 2004.05150.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

CELL, PAGE, BLOCK, TEXT = range(4)
"""Kinds of token: a cell of the grid, the summary of a page, that of a block, and a word."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What each token is and where it stands, as integers."""

    kind: Int[Tensor, "N"]
    block: Int[Tensor, "N"]
    """Of the video; not read of words."""
    frame: Int[Tensor, "N"]
    """Of its block, on the final grid: the last one that a cell covers. Read of cells alone, since
    the summaries of a page are seen by all who see one of them."""

    def __len__(self) -> int:
        return len(self.kind)

    @classmethod
    def of(cls, kind: int, block: Int[Tensor, "N"], frame: Int[Tensor, "N"]) -> "Tokens":
        """All of one kind."""
        return cls(kind=torch.full_like(block, kind), block=block, frame=frame)

    @classmethod
    def join(cls, *parts: "Tokens") -> "Tokens":
        """One after another."""
        names = ("kind", "block", "frame")
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Which keys a query may attend to, by one rule for all kernels.

    Everybody sees the words; of the own block the cells at most `window` frames away and all pages;
    of the block before the cells of its last `tail` frames and all pages; of every earlier block
    its summary; of later blocks nothing.
    """

    query: Tokens
    key: Tokens
    real: Bool[Tensor, "B M"]
    """False at keys that nobody may see: padding, or a block that a clip has not."""
    window: int
    tail: int
    length: int
    """Frames of a block."""

    @property
    def sees(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Whether in a clip, under a head, a query sees a key, given the numbers of all four, which
        broadcast: a mask_mod of FlexAttention."""
        mine, now, late = self.query.block, self.query.frame, self.length - self.tail
        kind, block, frame = self.key.kind, self.key.block, self.key.frame
        # A lambda, since a kernel traces it and the checks of types cannot be traced.
        return lambda b, h, q, k: (
            self.real[b, k]
            & (
                (kind[k] == TEXT)
                | ((kind[k] == BLOCK) & (block[k] < mine[q]))
                | ((kind[k] == PAGE) & (block[k] <= mine[q]) & (block[k] >= mine[q] - 1))
                | (
                    (kind[k] == CELL)
                    & (block[k] == mine[q])
                    & ((frame[k] - now[q]).abs() <= self.window)
                )
                | ((kind[k] == CELL) & (block[k] == mine[q] - 1) & (frame[k] >= late))
            )
        )

    def dense(self) -> Bool[Tensor, "B 1 N M"]:
        """As scaled_dot_product_attention takes it."""
        sizes = (len(self.real), len(self.query), len(self.key))
        clip, query, key = (torch.arange(size, device=self.real.device) for size in sizes)
        return self.sees(clip[:, None, None, None], clip[:1], query[:, None], key)

    def blocks(self) -> Any:
        """The same as a BlockMask of FlexAttention."""
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(
            self.sees,
            len(self.real),
            None,
            len(self.query),
            len(self.key),
            device=self.real.device,
        )
