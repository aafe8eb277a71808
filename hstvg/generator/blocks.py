"""The blocks of tokens that make up a latent for a next-scale transformer, in their order.

A rung's block holds a token per cell of its scale: what is known of the cell before, the pooled
z_hat_{k-1}, goes in, and what the rung says of it comes out. A given block holds finished latent
frames, which are only read: the frames a clip is to begin with, or the segment that was just
written, whose last rung no later input would show.
"""

from dataclasses import dataclass
from itertools import pairwise

from hstvg.scales import Rung, Scale, ScaleSchedule


@dataclass(frozen=True, kw_only=True)
class Block:
    """Tokens that are written, or read, in one step."""

    size: Scale
    """Grid of its tokens."""
    start: int
    """First latent frame that it covers."""
    span: int
    """Latent frames that it covers."""
    rung: Rung | None
    """What it writes; None where it is given."""
    number: int = -1
    """Of the rung among all rungs."""


def blocks_of(schedule: ScaleSchedule, context_frames: int = 0) -> tuple[Block, ...]:
    """All blocks of a latent, in order.

    Args:
        context_frames: latent frames that a clip may be given to begin with. With several segments
            they are whole segments, which are given in any case once they are written.
    """
    numbered = list(enumerate(schedule.rungs))
    blocks = []
    if context_frames and len(schedule) == 1:
        blocks.append(_given(0, context_frames, schedule.size))
    blocks += [_block(number, rung) for number, rung in numbered[:1]]
    for (_, before), (number, rung) in pairwise(numbered):
        if rung.segment != before.segment:
            blocks.append(_given(before.start, before.size.t, schedule.size))
        blocks.append(_block(number, rung))
    return tuple(blocks)


def _block(number: int, rung: Rung) -> Block:
    return Block(size=rung.scale, start=rung.start, span=rung.size.t, rung=rung, number=number)


def _given(start: int, frames: int, latent: Scale) -> Block:
    size = Scale(frames, latent.h, latent.w)
    return Block(size=size, start=start, span=frames, rung=None)
