"""PyramidFlow: one straight path from noise to data, climbed through the scales.

Proposal Hierarchical Video Generation, multi-scale flow matching; jump rule of arXiv 2410.05954,
written for any merge factor m (cells that one upsampling step splits a cell into). With
y_i = D_i z, boundaries 0 = t_0 < .. < t_I = 1 and one noise n per level:

    start_i = a_i U(y_{i-1}) + (1 - a_i) n        a_1 = 0
    end_i   = t_i y_i + (1 - t_i) n
    x_tau   = (1 - tau) start_i + tau end_i       v = end_i - start_i
    a_i     = t_{i-1} / (t_{i-1} + sqrt(m) (1 - t_{i-1}))

tau runs from 0 to 1 within every level, noise at 0 and data at 1. The velocity is d x / d tau, not
motion. In code levels count from 0: level 0 is i = 1.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.paths.gaussian_path import GaussianPath
from hstvg.paths.solver import SOLVERS, Solver
from hstvg.scales import Ladder, Scale, null_space, pool, upsample
from hstvg.types import LatentPyramid, PathSample

Velocity = Callable[[Tensor, Tensor, int], Tensor]
"""(x, tau [B], level) -> velocity of x."""

PyramidKind = Literal["cubic", "space", "time"]
TauKind = Literal["uniform", "logit_normal"]


class PyramidFlow:
    """The path over a pyramid of `len(boundaries)` levels.

    Args:
        boundaries: t_1 < ... < t_I = 1, where each level ends on the way from noise to data.
        pyramid: what halves from a level to the coarser one: rows, columns and time together
            ("cubic", m = 8), rows and columns alone ("space", m = 4), time alone ("time", m = 2);
            or the sizes themselves, coarse to fine, for a latent of the last and in proportion for
            others.
        tau: density of training times. Logit-normal ones (arXiv 2403.03206) keep to the middle.
        tau_shift: s > 1 moves training times and sampling steps of the first level towards noise,
            tau -> tau / (tau + s (1 - tau)); what moves where is decided at the noisiest times.

    Raises:
        ValueError: an argument is none of these, or there is not one size per boundary, each whole
            in the next.
    """

    def __init__(
        self,
        *,
        boundaries: Sequence[float] = (0.5, 1.0),
        pyramid: PyramidKind | Sequence[Sequence[int]] = "cubic",
        tau: TauKind = "uniform",
        tau_shift: float = 1.0,
    ) -> None:
        rises = all(a < b for a, b in pairwise((0, *boundaries)))
        if not rises or not boundaries or boundaries[-1] != 1:
            raise ValueError(f"boundaries {list(boundaries)} do not rise from above 0 to exactly 1")
        if tau not in get_args(TauKind):
            raise ValueError(f"tau={tau}: choose from {', '.join(get_args(TauKind))}")
        if tau_shift <= 0:
            raise ValueError(f"tau_shift={tau_shift} must be above 0")
        self.ends = tuple(boundaries)
        self.rungs = read_pyramid(pyramid, self.num_levels)
        self.tau = tau
        self.tau_shift = tau_shift

    @property
    def num_levels(self) -> int:
        return len(self.ends)

    def scales(self, size: Sequence[int]) -> Ladder:
        """The levels of a latent of this size.

        Raises:
            ValueError: it cannot be halved so often, or not in the proportion of the sizes given.
        """
        if isinstance(self.rungs, Ladder):
            return self.rungs.resized(size)
        grow = {"cubic": Ladder.cubic, "space": Ladder.space, "time": Ladder.time}[self.rungs]
        scales = grow(size)
        if len(scales) < self.num_levels:
            raise ValueError(
                f"a latent of {Scale(*size)} has {len(scales)} levels in a {self.rungs} pyramid, "
                f"but boundaries {list(self.ends)} ask for {self.num_levels}"
            )
        return scales.finest(self.num_levels)

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
        start = noise
        if level:
            scale = Scale(*fine.shape[2:])
            start = self.handoff(pyramid.levels[level - 1], level, scale, noise)
        end = self.ends[level] * fine + (1 - self.ends[level]) * noise
        time = tau.view(-1, 1, 1, 1, 1)
        x = (1 - time) * start + time * end
        return PathSample(start=start, end=end, x=x, velocity=end - start, tau=tau)

    def start_share(self, level: int, merge: int) -> float:
        """a_i: the share of the coarser data in the start of a level."""
        t = self.ends[level - 1]
        return t / (t + sqrt(merge) * (1 - t))

    def handoff(
        self,
        coarse: Float[Tensor, "B C t h w"],
        level: int,
        scale: Scale,
        noise: Float[Tensor, "B C _t _h _w"],
    ) -> Float[Tensor, "B C _t _h _w"]:
        """The start of `level`, 1 or finer, from the clean latent of the level before.

        Of training, and of sampling where something else wrote the coarse latent, as the next-scale
        transformer does up to its scale kappa. A clean latent brings no noise of its own, so noise
        drawn as in training is all it takes, and nothing has to be corrected as in a jump.

        Args:
            coarse: at the size of the level before.
            noise: standard normal, at the size `scale` of this level.
        """
        a = self.start_share(level, merge_factor(coarse, scale))
        return a * upsample(coarse, scale) + (1 - a) * noise

    def jump(
        self,
        x: Float[Tensor, "B C t h w"],
        level: int,
        scale: Scale,
        noise: Float[Tensor, "B C _t _h _w"],
    ) -> Float[Tensor, "B C _t _h _w"]:
        """From the end of the level before to the start of `level`, at its larger size.

        The noise of x, upsampled, is (1 - a_i) times the part of white noise that pooling sees:
        that is what a_i is chosen for. The part that pooling cannot see is added, zero-mean in each
        block of m cells and of variance (m - 1) / m, which makes the noise white again.
        """
        a = self.start_share(level, merge_factor(x, scale))
        unseen = null_space(noise, Scale(*x.shape[2:]))
        return a / self.ends[level - 1] * upsample(x, scale) + (1 - a) * unseen

    def clean(
        self,
        x: Float[Tensor, "B C t h w"],
        velocity: Float[Tensor, "B C t h w"],
        tau: Float[Tensor, "B"],
        level: int,
        scales: Ladder,
    ) -> Float[Tensor, "B C t h w"]:
        """y_i of the path that passes x with this velocity; of E[v | x] it is E[y_i | x].

        Since y_{i-1} = D y_i, what pooling sees of x and what it does not see are two Gaussian
        paths that share sigma, and each is solved for its part of y_i without knowing n:

            U D x       = (1 - sigma) U D y_i + sigma U D n        sigma = (1 - tau) (1 - a)
            (1 - U D) x = tau t (1 - U D) y_i + sigma (1 - U D) n          + tau (1 - t)

        Exact at every level and time; at the last, y = x + (1 - tau) v. A start whose coarse latent
        is not the pooled fine one, as after a handoff of a wrong one, is read as if it were.
        """
        levels, t, a = scales.finest(self.num_levels), self.ends[level], 0.0
        if level:
            a = self.start_share(level, levels[level].volume // levels[level - 1].volume)
        seen = GaussianPath.straight((1 - tau) * a + tau * t, rate=t - a)
        if level == 0:
            return seen.of_velocity(x, velocity).data
        unseen = GaussianPath(
            alpha=t * tau.view(-1, 1, 1, 1, 1),
            sigma=seen.sigma,
            alpha_rate=t,
            sigma_rate=seen.sigma_rate,
        )
        x_unseen, v_unseen = (null_space(part, levels[level - 1]) for part in (x, velocity))
        coarse = seen.of_velocity(x - x_unseen, velocity - v_unseen).data
        return coarse + unseen.of_velocity(x_unseen, v_unseen).data

    def draw_tau(self, uniform: Float[Tensor, "*B"], level: int) -> Float[Tensor, "*B"]:
        """Training times from uniform ones in [0, 1), by quantiles, shifted at the first level.

        Evenly spread numbers stay so in the measure of the density.
        """
        tau = uniform
        if self.tau == "logit_normal":
            tau = torch.sigmoid(torch.special.ndtri(uniform))
        return self._shift(tau, level)

    def sample(
        self,
        velocity: Velocity,
        scales: Ladder,
        noises: Sequence[Float[Tensor, "B C _t _h _w"]],
        *,
        steps: int,
        solver: Solver = "euler",
        first: int = 0,
        start: Float[Tensor, "B C _t _h _w"] | None = None,
    ) -> LatentPyramid:
        """Climb from noise to data by `steps` steps per level.

        Args:
            noises: one standard normal tensor per level of the pyramid, coarse to fine; with a
                start, those of `first` and coarser levels are not looked at.
            solver: Heun's steps ask for the velocity twice, Euler's once. The very last is Euler's,
                since at data that is thin, as a single clip is, the velocity has no limit.
            first: level to begin with.
            start: of that level, by `handoff`; level 0 starts with its noise.

        Returns:
            The clean latent as each level leaves it, `first` to the finest: at the last the sample
            itself, before it an estimate.

        Raises:
            ValueError: a finer level than 0 was given no start.
        """
        if first and start is None:
            raise ValueError(f"level {first} begins with a start of its own; take one by handoff")
        x = noises[0] if start is None else start
        levels = []
        for level, scale in list(enumerate(scales.finest(self.num_levels)))[first:]:
            if level > first:
                x = self.jump(x, level, scale, noises[level])

            def field(x: Tensor, tau: float, level: int = level) -> Tensor:
                return velocity(x, x.new_full((len(x),), tau), level)

            *times, end = self._shift(torch.linspace(0, 1, steps + 1), level).tolist()
            for now, after in pairwise(times):
                x = SOLVERS[solver](field, x, now, after)
            before, last = x, "euler" if self.ends[level] == 1 else solver
            x = SOLVERS[last](field, before, times[-1], end)
            # The last step is straight: all of its points have the same clean latent.
            slope = (x - before) / (end - times[-1])
            levels.append(self.clean(x, slope, x.new_full((len(x),), end), level, scales))
        return LatentPyramid(levels=tuple(levels))

    def _shift(self, tau: Tensor, level: int) -> Tensor:
        shift = self.tau_shift if level == 0 else 1.0
        return tau / (tau + shift * (1 - tau))


def read_pyramid(
    pyramid: PyramidKind | Sequence[Sequence[int]], num_levels: int
) -> PyramidKind | Ladder:
    """A kind of pyramid, or the ladder of the sizes that were given instead.

    Raises:
        ValueError: there is no such kind, or the sizes are not one per level, each whole in the
            next.
    """
    if isinstance(pyramid, str):
        if pyramid not in get_args(PyramidKind):
            known = ", ".join(get_args(PyramidKind))
            raise ValueError(f"pyramid={pyramid}: choose from {known}, or list the sizes")
        return pyramid
    ladder = Ladder(pyramid)
    if len(ladder) != num_levels:
        raise ValueError(f"pyramid has {len(ladder)} sizes for {num_levels} boundaries")
    for coarse, fine in pairwise(ladder):
        if not coarse.divides(fine):
            raise ValueError(f"pyramid: {coarse} is not whole in {fine}, the next")
    return ladder


def merge_factor(coarse: Float[Tensor, "B C t h w"], scale: Scale) -> int:
    """m: cells of `scale` per cell of a coarse latent."""
    return scale.volume // Scale(*coarse.shape[2:]).volume
