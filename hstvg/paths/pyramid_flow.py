"""PyramidFlow: one straight path from noise to data, climbed through the scales.

Proposal Hierarchical Video Generation, multi-scale flow matching; jump rule of arXiv 2410.05954,
written for any merge factor m (cells that one upsampling step splits a cell into). With
y_i = D_i z, boundaries 0 = t_0 < .. < t_I = 1 and one noise n per level:

    start_i = a_i U(y_{i-1}) + (1 - a_i) n        a_1 = 0
    end_i   = t_i y_i + (1 - t_i) n
    x_tau   = (1 - tau) start_i + tau end_i       v = end_i - start_i
    a_i     = t_{i-1} / (t_{i-1} + sqrt(m) (1 - t_{i-1}))

tau runs from 0 to 1 within every level, noise at 0 and data at 1. The velocity is d x / d tau, not
motion.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.scales import Ladder, Scale, null_space, pool, upsample
from hstvg.types import LatentPyramid, PathSample

Velocity = Callable[[Tensor, Tensor, int], Tensor]
"""(x, tau [B], level) -> velocity of x."""


class PyramidFlow:
    """The path over the last `len(boundaries)` scales of a schedule.

    Args:
        boundaries: t_1 < ... < t_I = 1, where each level ends on the way from noise to data.
        tau_shift: s > 1 moves training times and sampling steps of the first level towards noise,
            tau -> tau / (tau + s (1 - tau)); what moves where is decided at the noisiest times.
    """

    def __init__(self, *, boundaries: Sequence[float] = (0.5, 1.0), tau_shift: float = 1.0) -> None:
        rises = all(a < b for a, b in pairwise((0, *boundaries)))
        if not rises or not boundaries or boundaries[-1] != 1:
            raise ValueError(f"boundaries {list(boundaries)} do not rise from above 0 to exactly 1")
        if tau_shift <= 0:
            raise ValueError(f"tau_shift={tau_shift} must be above 0")
        self.ends = tuple(boundaries)
        self.tau_shift = tau_shift

    @property
    def num_levels(self) -> int:
        return len(self.ends)

    def pyramid(self, z: Float[Tensor, "B C t h w"], scales: Ladder) -> LatentPyramid:
        """z pooled to every level, coarse to fine."""
        return LatentPyramid(
            levels=tuple(pool(z, scale) for scale in scales.finest(self.num_levels))
        )

    def at(
        self,
        pyramid: LatentPyramid,
        level: int,
        noise: Float[Tensor, "B C t h w"],
        tau: Float[Tensor, "B"],
    ) -> PathSample:
        """The path of one level at times tau."""
        fine = pyramid.levels[level]
        end = self.ends[level] * fine + (1 - self.ends[level]) * noise
        start = noise
        if level:
            coarse = pyramid.levels[level - 1]
            scale = Scale(*fine.shape[2:])
            a = self.start_share(level, scale.volume // Scale(*coarse.shape[2:]).volume)
            start = a * upsample(coarse, scale) + (1 - a) * noise
        time = tau.view(-1, 1, 1, 1, 1)
        x = (1 - time) * start + time * end
        return PathSample(start=start, end=end, x=x, velocity=end - start, tau=tau)

    def start_share(self, level: int, merge: int) -> float:
        """a_i: the share of the coarser data in the start of a level."""
        t = self.ends[level - 1]
        return t / (t + sqrt(merge) * (1 - t))

    def jump(
        self,
        x: Float[Tensor, "B C t h w"],
        level: int,
        scale: Scale,
        noise: Float[Tensor, "B C _t _h _w"],
    ) -> Float[Tensor, "B C _t _h _w"]:
        """From the end of the level before to the start of `level`, at its larger size.

        Upsampling makes the m cells of a block equal; the added noise, zero-mean in each block,
        brings their covariance back to that of the path: off-diagonal zero, variance (1 - a_i)^2.
        """
        merge = scale.volume // Scale(*x.shape[2:]).volume
        a = self.start_share(level, merge)
        block_noise = null_space(noise, Scale(*x.shape[2:])) * sqrt(merge / (merge - 1))
        b = (1 - a) * sqrt((merge - 1) / merge)
        return a / self.ends[level - 1] * upsample(x, scale) + b * block_noise

    def draw_tau(self, uniform: Float[Tensor, "*B"], level: int) -> Float[Tensor, "*B"]:
        """Training times from uniform ones, shifted at the first level."""
        return self._shift(uniform, level)

    def sample(
        self,
        velocity: Velocity,
        scales: Ladder,
        noises: Sequence[Float[Tensor, "B C _t _h _w"]],
        *,
        steps: int,
    ) -> LatentPyramid:
        """Climb from noise to data by Euler steps, `steps` per level.

        Args:
            noises: one standard normal tensor per level, coarse to fine.
        """
        x = noises[0]
        levels = []
        for level, scale in enumerate(scales.finest(self.num_levels)):
            if level:
                x = self.jump(x, level, scale, noises[level])
            times = self._shift(torch.linspace(0, 1, steps + 1, device=x.device), level)
            for now, after in pairwise(times):
                x = x + (after - now) * velocity(x, now.expand(len(x)), level)
            levels.append(x)
        return LatentPyramid(levels=tuple(levels))

    def _shift(self, tau: Tensor, level: int) -> Tensor:
        shift = self.tau_shift if level == 0 else 1.0
        return tau / (tau + shift * (1 - tau))
