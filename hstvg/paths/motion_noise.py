"""MotionNoise: Gaussian noise N(0, Sigma(M)) that moves with the picture, white in every frame.

Proposal Hierarchical Video Generation, motion-guided noise, by particle transport: k x k particles
per latent cell carry independent standard normal values and move with the motion field M.

    n_t(c) = sum of the values in c / sqrt(|c|)       |c|: particles in cell c at frame t
    n      = sqrt(alpha) n_t + sqrt(1 - alpha) n_iid  (mixed noise of arXiv 2305.10474)
    Sigma  = alpha Sigma_part + (1 - alpha) I
    Sigma_part[(t, c), (t', c')] = |c and c'| / sqrt(|c| |c'|)

A particle is in one cell of a frame, so cells share none and every frame is exactly N(0, I),
however the field folds or tears. Sigma_part is a Gram matrix, so Sigma is positive definite for
alpha < 1. Where particles go depends on the motion alone, never on their values, so that removing
some (left the frame, crowded out) does not bias the noise.

Axes     P particle slots, k^2 per cell of the grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hstvg.paths.draws import Draws
from hstvg.scales import Scale, pool, upsample
from hstvg.types import Particles


@dataclass(frozen=True, kw_only=True)
class MovingNoise:
    """The noise of a block, and the particles where the next one begins."""

    noise: Float[Tensor, "B C _t _h _w"]
    particles: Particles


class _Track(NamedTuple):
    """The particles at one frame, and where they go from there."""

    cell: Int[Tensor, "B P"]
    """Row by row; h w for a free slot."""
    fresh: Bool[Tensor, "B P"]
    """Slots whose particle begins at this frame."""
    place: Float[Tensor, "B P 2"]
    step: Float[Tensor, "B P 2"]
    """On the way to the next frame."""

    def after(self, share: float) -> tuple[Float[Tensor, "B P 2"], Float[Tensor, "B P"]]:
        """Place, and cells per frame, when that share of the way is gone."""
        return self.place + share * self.step, self.step.norm(dim=-1)


class MotionNoise:
    """Noise that moves with clips: the same in training and in sampling.

    Not warped noise: interpolating values would colour a frame; here only places are moved.

    Args:
        seconds: per frame of the latent: the tokenizer's stride in time / frames per second.
        particles: k, per axis of a cell. Motion shows from 1 / k of a cell on.
        plain: share of training clips whose noise is white, alpha = 0.
        most: of the others, alpha is uniform in [0, most).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, *, seconds: float, particles: int = 4, plain: float = 0.5, most: float = 0.9
    ) -> None:
        wrong = {
            "seconds": seconds <= 0,
            "particles": particles < 1,
            "plain": not 0 <= plain <= 1,
            "most": not 0 <= most < 1,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise ValueError(f"{name}={locals()[name]} is out of its range")
        self.seconds = seconds
        self.k = particles
        self.plain = plain
        self.most = most

    def draw_alpha(self, draws: Draws) -> Float[Tensor, "B"]:
        """How much of each training clip's noise moves: Sigma's alpha."""
        coin, alpha = draws.uniform("alpha", 2).unbind(1)
        return torch.where(coin < self.plain, 0.0, self.most * alpha)

    def sample(
        self,
        white: Float[Tensor, "B C _t _h _w"],
        motion: Float[Tensor, "B 2 t h w"],
        alpha: Float[Tensor, "B"],
        draws: Draws,
        after: Particles | None = None,
        overlap: float = 0.0,
    ) -> MovingNoise:
        """Noise of covariance Sigma(motion), independent between channels.

        Args:
            white: the share of the noise that does not move; alpha = 0 gives it back bit by bit.
            motion: (x, y) in frame widths per second from each frame to the next, on the latent's
                grid, whose cells are square; that of the noise is the same or a coarser one.
            alpha: in [0, 1).
            draws: of the clips. Of the same ones in every block, frames that two blocks share are
                the same in what comes into being there, too.
            after: where the block before handed over; None begins a clip.
            overlap: frames of this block, less than all, with which the next one begins: the
                particles it is handed are those before them.
        """
        B, C, t, h, w = white.shape
        start = after or self._nowhere(B, C, h, w, white.device)
        values, moved = start.values, []
        last = ceil(t - overlap) - 1  # the frame from which the next block's first is reached
        handed = start
        for frame, track in enumerate(self._tracks(start, self._steps(motion, Scale(t, h, w)))):
            fresh = draws.normal(f"particles/{start.frame + frame}", *values.shape[1:])
            values = torch.where(track.fresh[:, None], fresh, values)
            moved.append(_read(values, track.cell, h * w).view(B, C, h, w))
            if frame == last:
                place, speed = track.after(t - overlap - last)
                begun = start.frame + frame + 1
                handed = Particles(place=place, speed=speed, values=values, frame=begun)
        share = alpha.view(-1, 1, 1, 1, 1)
        return MovingNoise(
            noise=share.sqrt() * torch.stack(moved, dim=2) + (1 - share).sqrt() * white,
            particles=handed,
        )

    def colour(
        self,
        white: Float[Tensor, "B C _t _h _w"],
        coarsest: Scale,
        motion: Float[Tensor, "B 2 t h w"],
        alpha: Float[Tensor, "B"],
        draws: Draws,
        after: Particles | None = None,
        overlap: float = 0.0,
    ) -> MovingNoise:
        """Noise of a pyramid level, of which the part that the coarsest level sees is `sample`'s.

        Jumps add white noise that pooling cannot see, and keep what it does see. So this is exactly
        the noise that sampling meets at every level, if it began with that of `sample`.

        Args:
            overlap: as of `sample`, as a share of the block.
        """
        told: Any = {"after": after, "overlap": overlap * coarsest.t}
        scale = Scale(*white.shape[2:])
        if scale == coarsest:
            return self.sample(white, motion, alpha, draws, **told)
        unit = sqrt(scale.volume / coarsest.volume)  # gives pooled white noise variance 1
        seen = unit * pool(white, coarsest)
        moved = self.sample(seen, motion, alpha, draws, **told)
        return replace(moved, noise=white + upsample(moved.noise - seen, scale) / unit)

    def covariance(
        self, motion: Float[Tensor, "2 t h w"], alpha: float
    ) -> Float[Tensor, "thw thw"]:
        """Sigma of a clip in closed form, for sizes at which (t h w)^2 numbers are few."""
        _, t, h, w = motion.shape
        steps = self._steps(motion[None], Scale(t, h, w))
        start = self._nowhere(1, 1, h, w, motion.device)
        slots = torch.arange(start.place.shape[1], device=motion.device)
        names, shares = slots, []
        for frame, track in enumerate(self._tracks(start, steps)):
            names = torch.where(track.fresh[0], frame * len(slots) + slots, names)
            owner = torch.zeros(h * w + 1, t * len(slots), dtype=torch.float64, device=slots.device)
            owner[track.cell[0], names] = 1
            owner = owner[:-1]  # without the free slots
            shares.append(owner / owner.sum(dim=1, keepdim=True).sqrt())
        rows = torch.cat(shares)
        unit = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        return alpha * rows @ rows.T + (1 - alpha) * unit

    def _nowhere(self, B: int, C: int, h: int, w: int, device: torch.device) -> Particles:
        """Before the first frame every slot is free, so that it fills all cells."""
        P = h * w * self.k**2
        return Particles(
            place=torch.full((B, P, 2), -1.0, device=device),
            speed=torch.zeros(B, P, device=device),
            values=torch.zeros(B, C, P, device=device),
            frame=0,
        )

    def _steps(
        self, motion: Float[Tensor, "B 2 t h w"], size: Scale
    ) -> Float[Tensor, "B 2 _t _h _w"]:
        """Motion on the grid of the noise, in its cells per frame."""
        t, h, w = motion.shape[2:]
        # A frame is 1 width wide and h / w widths tall.
        per_width = motion.new_tensor([size.w, size.h * w / h], dtype=torch.float32)
        return pool(motion.float(), size) * (self.seconds * t / size.t * per_width).view(2, 1, 1, 1)

    def _tracks(self, start: Particles, steps: Float[Tensor, "B 2 t h w"]) -> Iterator[_Track]:
        """The particles frame by frame: a function of the motion alone."""
        h, w = steps.shape[3:]
        place, speed = start.place, start.speed
        for field in steps.unbind(2):
            place, cell, fresh = self._settle(place, speed, h, w)
            # The motion of its own cell: objects have edges, at which interpolation would invent
            # motions that nothing has. Free slots read the zero after the last cell and stay.
            field = F.pad(field.flatten(2), (0, 1))
            step = field.gather(2, cell[:, None].expand(-1, 2, -1)).mT
            track = _Track(cell, fresh, place, step)
            place, speed = track.after(1.0)
            yield track

    def _settle(
        self, place: Float[Tensor, "B P 2"], speed: Float[Tensor, "B P"], h: int, w: int
    ) -> tuple[Float[Tensor, "B P 2"], Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
        """Remove who left the frame or stands in a crowd, and fill the cells that are empty.

        A cell keeps k^2 at most, so that the free slots always suffice to give k^2 to each empty
        one, however long the video. Of a crowd the fastest stay: what moves covers what rests.
        """
        most, nowhere = self.k**2, h * w
        cell = _cells(place, h, w)
        cell = torch.where(_rank(cell, -speed, nowhere) < most, cell, nowhere)
        free = cell == nowhere
        filled = _count(cell, nowhere) > 0
        nth = free.long().cumsum(1) - 1  # of the free slots
        fresh = free & (nth < most * (~filled).sum(1, keepdim=True))
        empty = filled.byte().argsort(dim=1, stable=True)  # these cells come first
        nth = nth.clamp_min(0)
        target = empty.gather(1, nth // most)
        column, row = target % w, target // w
        inside = torch.stack([nth % self.k, nth % most // self.k], dim=-1) + 0.5
        corner = torch.stack([column, row], dim=-1)
        place = torch.where(free[..., None], -1.0, place)
        place = torch.where(fresh[..., None], corner + inside / self.k, place)
        return place, torch.where(fresh, target, cell), fresh


def _cells(place: Float[Tensor, "B P 2"], h: int, w: int) -> Int[Tensor, "B P"]:
    """The cell around each place, row by row; h w outside the frame."""
    x, y = place.unbind(-1)
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    # Masked before they are made whole: a place far outside is no integer.
    column, row = (torch.where(inside, part, 0.0).long() for part in (x, y))
    return torch.where(inside, row * w + column, h * w)


def _count(cell: Int[Tensor, "B P"], cells: int) -> Int[Tensor, "B cells"]:
    """Particles in each cell."""
    counts = cell.new_zeros(len(cell), cells + 1)
    return counts.scatter_add(1, cell, torch.ones_like(cell))[:, :cells]


def _rank(
    cell: Int[Tensor, "B P"], order: Float[Tensor, "B P"], nowhere: int
) -> Int[Tensor, "B P"]:
    """Place of each particle among those of its cell, by rising `order`; ties by slot."""
    first = order.argsort(dim=1, stable=True)
    by_cell = first.gather(1, cell.gather(1, first).argsort(dim=1, stable=True))
    counts = _count(cell, nowhere + 1)
    starts = counts.cumsum(1) - counts
    place = torch.arange(cell.shape[1], device=cell.device) - starts.gather(
        1, cell.gather(1, by_cell)
    )
    return torch.empty_like(cell).scatter(1, by_cell, place)


def _read(
    values: Float[Tensor, "B C P"], cell: Int[Tensor, "B P"], cells: int
) -> Float[Tensor, "B C cells"]:
    """What the particles of each cell say together, of variance 1."""
    B, C, _ = values.shape
    # In double precision, so that the order in which a device adds them does not show.
    sums = values.new_zeros(B, C, cells + 1, dtype=torch.float64)
    sums = sums.scatter_add(2, cell[:, None].expand_as(values), values.double())[..., :cells]
    return (sums / _count(cell, cells)[:, None].sqrt()).to(values.dtype)
