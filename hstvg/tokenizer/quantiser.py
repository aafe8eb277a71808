"""Quantisers: a small number of codes per channel, for values of about unit variance.

Every channel is a code of its own, so that a token of C channels has L^C values and its classifier
C * L outputs (arXiv 2412.04431). A library's one index per token would not do: 5^16 is no int32.
"""

from math import pi, sqrt
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Quantiser(Protocol):
    """Values to codes 0..levels-1 and back; decoding any code and encoding it again gives it."""

    levels: int

    def encode(self, x: Float[Tensor, "*axes"]) -> Int[Tensor, "*axes"]: ...

    def decode(self, codes: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes"]: ...


class FSQ:
    """Evenly spaced values from -reach to reach (finite scalar quantisation, arXiv 2309.15505).

    Args:
        levels: L, odd: a residual that is already small has to have a code for nothing.
        reach: the largest value, in standard deviations; what lies beyond is clipped.

    Raises:
        ValueError: L is even or below 3, or reach is not above 0.
    """

    def __init__(self, levels: int = 5, reach: float = 1.75) -> None:
        if levels < 3 or levels % 2 == 0:
            raise ValueError(f"FSQ of {levels} levels has no code for 0; give 3, 5, 7, ...")
        if reach <= 0:
            raise ValueError(f"reach={reach} must be above 0")
        self.levels = levels
        self.reach = reach

    def encode(self, x: Float[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
        share = (x.clamp(-self.reach, self.reach) / self.reach + 1) / 2
        return (share * (self.levels - 1)).round().long()

    def decode(self, codes: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return (codes.float() / (self.levels - 1) * 2 - 1) * self.reach


class BSQ:
    """Signs: one bit per channel (binary spherical quantisation, arXiv 2406.07548).

    The sphere gives every channel of a token the same magnitude. Here the codec does, which divides
    each scale by its deviation, so that what is left of the method is its sign.

    Args:
        reach: magnitude of both values; the default is the mean magnitude of a standard normal,
            and so its best two-valued stand-in.
    """

    levels = 2

    def __init__(self, reach: float = sqrt(2 / pi)) -> None:
        if reach <= 0:
            raise ValueError(f"reach={reach} must be above 0")
        self.reach = reach

    def encode(self, x: Float[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
        return (x > 0).long()

    def decode(self, codes: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return (codes.float() * 2 - 1) * self.reach
