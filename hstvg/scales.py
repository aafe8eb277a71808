"""Scales: the rungs of the space-time pyramid 1x1x1 -> 2x2x2 -> ..., and moving between them.

Source: proposal VideoAR, multi-scale latent tokens. Pooling is averaging and upsampling is nearest,
so that pool(upsample(x)) == x exactly: a coarse latent is the pooled fine latent at every rung.

Ladder          the scales of one run of latent frames, coarse to fine.
ScaleSchedule   the ladders of a whole latent, one segment of its frames after another.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ScheduleKind = Literal["cubic", "space", "frames"]


class Scale(NamedTuple):
    """Size of a latent grid: frames, rows, columns."""

    t: int
    h: int
    w: int

    @property
    def volume(self) -> int:
        return self.t * self.h * self.w

    def divides(self, other: "Scale") -> bool:
        return all(b % a == 0 for a, b in zip(self, other, strict=True))

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"


class Ladder(tuple[Scale, ...]):
    """Scales from coarse to fine; each divides the last and none shrinks.

    The last may be there several times: every repetition refines what quantisation left over.

    Raises:
        ValueError: a scale does not divide the last, or an axis shrinks on the way.
    """

    def __new__(cls, sizes: Sequence[Sequence[int]]) -> "Ladder":
        scales = [Scale(*size) for size in sizes]
        if not scales:
            raise ValueError("a ladder needs at least one scale")
        for coarse, fine in pairwise(scales):
            if any(a > b for a, b in zip(coarse, fine, strict=True)):
                raise ValueError(f"scale {fine} is smaller than {coarse} before it")
        for scale in scales:
            if min(scale) < 1 or not scale.divides(scales[-1]):
                raise ValueError(f"scale {scale} does not divide the last scale {scales[-1]}")
        return super().__new__(cls, scales)

    @property
    def last(self) -> Scale:
        return self[-1]

    @classmethod
    def cubic(cls, last: Sequence[int]) -> "Ladder":
        """Halve every axis that stays whole, from `last` down: 8x8x8 gives 1, 2, 4, 8 cubed."""
        sizes = [tuple(last)]
        while any(size % 2 == 0 for size in sizes[0]):
            sizes.insert(0, tuple(size // 2 if size % 2 == 0 else size for size in sizes[0]))
        return cls(sizes)

    @classmethod
    def space(cls, last: Sequence[int]) -> "Ladder":
        """Halve rows and columns alone, at full length (as arXiv 2511.04675 does for a clip)."""
        t, h, w = last
        return cls([(t, scale.h, scale.w) for scale in cls.cubic((1, h, w))])

    @classmethod
    def time(cls, last: Sequence[int]) -> "Ladder":
        """Halve the length alone, at full rows and columns (arXiv 2503.09566)."""
        t, h, w = last
        return cls([(scale.t, h, w) for scale in cls.cubic((t, 1, 1))])

    def finest(self, count: int) -> "Ladder":
        """The last `count` scales: the levels of the diffusion pyramid.

        Raises:
            ValueError: there are not so many.
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"there are {len(self)} scales, of which {count} cannot be taken")
        return Ladder(self[-count:])

    def resized(self, last: Sequence[int]) -> "Ladder":
        """The same rungs for a latent of another size, in proportion and at least 1 per axis.

        Raises:
            ValueError: they would not be whole.
        """
        sizes = []
        for scale in self:
            parts = [n * new for n, new in zip(scale, last, strict=True)]
            sizes.append([max(1, part // old) for part, old in zip(parts, self.last, strict=True)])
            if any(p > old and p % old for p, old in zip(parts, self.last, strict=True)):
                raise ValueError(
                    f"scale {scale} of {self.last} has no whole size in {Scale(*last)}"
                )
        return Ladder(sizes)


class Rung(NamedTuple):
    """One scale of one segment: what the next-scale transformer writes in one step."""

    scale: Scale
    depth: int
    """Place in its ladder, from 0."""
    kind: int
    """Rungs of the same place in the same ladder are of one kind and share their weights."""
    segment: int
    start: int
    """First latent frame of its segment."""
    size: Scale
    """Grid of its finished segment."""

    @property
    def frames(self) -> slice:
        """Of the whole latent."""
        return slice(self.start, self.start + self.size.t)


class ScaleSchedule(tuple[Ladder, ...]):
    """The ladders of a latent, segment by segment in time.

    cubic    one segment; time, rows and columns halve together (proposal VideoAR)
    space    one segment; rows and columns halve at full length
    frames   one segment per latent frame: next frame, and in it next scale (arXiv 2601.05966)

    Raises:
        ValueError: segments differ in rows or columns.
    """

    def __new__(cls, segments: Sequence[Sequence[Sequence[int]]]) -> "ScaleSchedule":
        ladders = [Ladder(sizes) for sizes in segments]
        if not ladders:
            raise ValueError("a schedule needs at least one segment")
        for ladder in ladders[1:]:
            if ladder.last[1:] != ladders[0].last[1:]:
                raise ValueError(f"segments end at {ladders[0].last} and {ladder.last}: two sizes")
        return super().__new__(cls, ladders)

    @classmethod
    def of_kind(
        cls, kind: ScheduleKind, size: Sequence[int], *, first_alone: bool = False
    ) -> "ScaleSchedule":
        """The schedule of a kind for a latent of `size`.

        Args:
            first_alone: the first latent frame is a segment of its own: an image.

        Raises:
            ValueError: there is no such kind.
        """
        if kind not in get_args(ScheduleKind):
            raise ValueError(f"schedule={kind}: choose from {', '.join(get_args(ScheduleKind))}")
        t, h, w = size
        frame = Ladder.cubic((1, h, w))
        if kind == "frames":
            return cls([frame] * t)
        grow = Ladder.cubic if kind == "cubic" else Ladder.space
        if not first_alone:
            return cls([grow(size)])
        return cls([frame, grow((t - 1, h, w))] if t > 1 else [frame])

    @property
    def size(self) -> Scale:
        """Of the whole latent."""
        return Scale(sum(ladder.last.t for ladder in self), *self[0].last[1:])

    @property
    def num_levels(self) -> int:
        """K: rungs of the longest ladder."""
        return max(len(ladder) for ladder in self)

    @property
    def ladders(self) -> tuple[Ladder, ...]:
        """Those that differ, in the order in which they first come."""
        return tuple(dict.fromkeys(self))

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """All of them in the order in which they are written."""
        kinds: dict[Ladder, int] = {}
        for ladder in self.ladders:
            kinds[ladder] = sum(len(known) for known in kinds)
        rungs, start = [], 0
        for segment, ladder in enumerate(self):
            rungs += [
                Rung(scale, depth, kinds[ladder] + depth, segment, start, ladder.last)
                for depth, scale in enumerate(ladder)
            ]
            start += ladder.last.t
        return tuple(rungs)

    def resized(self, size: Sequence[int]) -> "ScaleSchedule":
        """The same kinds of rung for a latent of another size.

        One segment stretches in proportion. Of several, which have their lengths, the first stays
        and the last is repeated as often as the frames ask for: an image has the first alone.

        Raises:
            ValueError: the rungs or the segments would not be whole, or not of the same kinds.
        """
        if tuple(size) == self.size:
            return self
        t, h, w = size
        if len(self) == 1:
            return ScaleSchedule([self[0].resized(size)])
        first, last = (self[i].resized((self[i].last.t, h, w)) for i in (0, -1))
        repeats, rest = divmod(t - first.last.t, last.last.t)
        if rest or repeats < 0:
            raise ValueError(
                f"{t} latent frames are not {first.last.t} and whole segments of {last.last.t}"
            )
        resized = ScaleSchedule([first, *[last] * repeats])
        if repeats and len(resized.ladders) != len(self.ladders):
            raise ValueError(f"{self} has no kinds of rung for a latent of {Scale(*size)}")
        return resized

    def __str__(self) -> str:
        return " | ".join(" ".join(map(str, ladder)) for ladder in self)


def pool(x: Float[Tensor, "B C t h w"], scale: Scale) -> Float[Tensor, "B C _t _h _w"]:
    """Average down to a scale that divides x: the operator D_k."""
    return F.adaptive_avg_pool3d(x, scale)


def upsample(x: Float[Tensor, "B C t h w"], scale: Scale) -> Float[Tensor, "B C _t _h _w"]:
    """Repeat every cell up to a scale that x divides: the operator U_k; pool undoes it exactly."""
    if x.shape[2:] == tuple(scale):
        return x
    # By hand: interpolate rounds some whole ratios to the wrong cell.
    B, C, t, h, w = x.shape
    a, b, c = (big // small for big, small in zip(scale, (t, h, w), strict=True))
    blocks = x[:, :, :, None, :, None, :, None].expand(B, C, t, a, h, b, w, c)
    return blocks.reshape(B, C, *scale)


def null_space(x: Float[Tensor, "B C t h w"], scale: Scale) -> Float[Tensor, "B C t h w"]:
    """The part of x that pooling to `scale` cannot see: (I - U D) x."""
    return x - upsample(pool(x, scale), Scale(*x.shape[2:]))
