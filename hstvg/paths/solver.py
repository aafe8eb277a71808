"""Solvers: one step along a velocity field, from path time `now` to `after`.

euler   one evaluation of the field a step; the error falls with the step
heun    two evaluations a step; the error falls with its square (arXiv 2206.00364, algorithm 1)
"""

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

Solver = Literal["euler", "heun"]
Field = Callable[[Tensor, float], Tensor]
"""(x, tau) -> velocity of x."""


def euler(field: Field, x: Tensor, now: float, after: float) -> Tensor:
    return x + (after - now) * field(x, now)


def heun(field: Field, x: Tensor, now: float, after: float) -> Tensor:
    """The mean of the velocities here and where an Euler step would land."""
    here = field(x, now)
    there = field(x + (after - now) * here, after)
    return x + (after - now) * (here + there) / 2


SOLVERS: Mapping[Solver, Callable[[Field, Tensor, float, float], Tensor]] = {
    "euler": euler,
    "heun": heun,
}
