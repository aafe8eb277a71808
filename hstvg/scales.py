"""Scales: the rungs of the space-time pyramid 1x1x1 -> 2x2x2 -> ..., and moving between them.

Source: proposal VideoAR, multi-scale latent tokens. Pooling is averaging and upsampling is nearest,
so that pool(upsample(x)) == x exactly: a coarse latent is the pooled fine latent at every rung.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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


class ScaleSchedule(tuple[Scale, ...]):
    """Scales from coarse to fine; each divides the last and none shrinks.

    Raises:
        ValueError: a scale does not divide the last, or an axis shrinks on the way.
    """

    def __new__(cls, sizes: Sequence[Sequence[int]]) -> "ScaleSchedule":
        scales = [Scale(*size) for size in sizes]
        for coarse, fine in pairwise(scales):
            if any(a > b for a, b in zip(coarse, fine, strict=True)):
                raise ValueError(f"scale {fine} is smaller than {coarse} before it")
        for scale in scales:
            if not scale.divides(scales[-1]):
                raise ValueError(f"scale {scale} does not divide the last scale {scales[-1]}")
        return super().__new__(cls, scales)

    @property
    def last(self) -> Scale:
        return self[-1]

    @classmethod
    def cubic(cls, last: Sequence[int]) -> "ScaleSchedule":
        """Halve every axis that stays whole, from `last` down: 8x8x8 gives 1, 2, 4, 8 cubed."""
        sizes = [tuple(last)]
        while any(size % 2 == 0 for size in sizes[0]):
            sizes.insert(0, tuple(size // 2 if size % 2 == 0 else size for size in sizes[0]))
        return cls(sizes)

    def finest(self, count: int) -> "ScaleSchedule":
        """The last `count` scales: the levels of the diffusion pyramid.

        Raises:
            ValueError: there are not so many.
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"there are {len(self)} scales, of which {count} cannot be taken")
        return ScaleSchedule(self[-count:])


def pool(x: Float[Tensor, "B C t h w"], scale: Scale) -> Float[Tensor, "B C _t _h _w"]:
    """Average down to a scale that divides x: the operator D_k."""
    return F.adaptive_avg_pool3d(x, scale)


def upsample(x: Float[Tensor, "B C t h w"], scale: Scale) -> Float[Tensor, "B C _t _h _w"]:
    """Repeat every cell up to a scale that x divides: the operator U_k; pool undoes it exactly."""
    if x.shape[2:] == tuple(scale):
        return x
    return F.interpolate(x, size=tuple(scale), mode="nearest")


def null_space(x: Float[Tensor, "B C t h w"], scale: Scale) -> Float[Tensor, "B C t h w"]:
    """The part of x that pooling to `scale` cannot see: (I - U D) x."""
    return x - upsample(pool(x, scale), Scale(*x.shape[2:]))
