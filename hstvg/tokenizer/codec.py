"""ScaleCodec: one latent as a sum of quantised contributions from coarse to fine.

Proposal VideoAR, multi-scale latent tokens. In every segment of the schedule, with D_k averaging
down to rung k, q_k its quantiser, up_k its upsampler and rho_0 = z:

    a_k     = D_k rho_{k-1}
    r_k     = sigma_k q(a_k / sigma_k)
    h_k     = up_k(r_k, z_hat_{k-1})             with D_k h_k = r_k
    z_hat_k = z_hat_{k-1} + h_k,    rho_k = z - z_hat_k

so that D_k z_hat_k = D_k z_hat_{k-1} + r_k. With q the identity, z_hat_K = z. sigma_k is the
running deviation of a_k, per rung and channel: without it the first codes of a residual pyramid of
few levels are worse than nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hstvg.nn.statistics import Statistic
from hstvg.scales import Rung, ScaleSchedule, pool
from hstvg.tokenizer.quantiser import Quantiser
from hstvg.tokenizer.upsampler import ScaleUpsampler
from hstvg.types import Corrupt, LatentPyramid, Split

SMALLEST_DEVIATION = 1e-3
"""Of a standardised latent: a channel that a scale leaves dead would else be divided by nothing."""


class ScaleCodec(nn.Module):
    """Splits a standardised latent into rungs and merges any prefix of them; float32 throughout.

    Args:
        channels: latent channels.
        schedule: of the usual size of a latent; one of another size is split in proportion.
    """

    def __init__(self, channels: int, schedule: ScaleSchedule, quantiser: Quantiser) -> None:
        super().__init__()
        self.channels = channels
        self.schedule = schedule
        self.quantiser = quantiser
        self.upsamplers = nn.ModuleList(
            ScaleUpsampler(channels, guesses=scale != ladder.last)
            for ladder in schedule.ladders
            for scale in ladder
        )
        kinds = len(self.upsamplers)
        self.variance = Statistic(torch.ones(kinds, channels))
        self.usage = Statistic(torch.full((kinds, channels, quantiser.levels), 0.0))

    @property
    def levels(self) -> int:
        return self.quantiser.levels

    def split(
        self,
        z: Float[Tensor, "B C t h w"],
        *,
        quantise: bool = True,
        corrupt: Corrupt | None = None,
    ) -> Split:
        """The rungs of a latent.

        Args:
            quantise: False takes r_k = a_k.
            corrupt: changes what a rung says before it is accumulated. The codes returned are the
                right ones: those of a later rung correct what was done to the ones before it
                (self-correction of arXiv 2412.04431).
        """
        pooled, codes, residuals, states = [], [], [], []
        state = z[:, :, :0]
        for number, rung in enumerate(self.schedule.resized(z.shape[2:]).rungs):
            target = z[:, :, rung.frames].float()
            if rung.depth == 0:
                state = torch.zeros_like(target)
            asked = pool(target - state, rung.scale)
            right = self.encode(asked, rung)
            taken = right if quantise else asked
            if corrupt is not None:
                taken = corrupt(taken, number)
            residual = self.decode(taken, rung) if quantise else taken
            state = self.grow(state, residual, rung)
            pooled.append(asked)
            codes.append(right)
            residuals.append(residual)
            states.append(state)
        return Split(
            pooled=tuple(pooled),
            codes=tuple(codes),
            residuals=tuple(residuals),
            states=tuple(states),
        )

    def merge(
        self, codes: Sequence[Int[Tensor, "B C _t _h _w"]], size: Sequence[int] | None = None
    ) -> Float[Tensor, "B C t h w"]:
        """z_hat from the codes of the first rungs; zero where none has been written.

        Args:
            size: (t, h, w) of the latent; that of the schedule if not given.
        """
        schedule = self.schedule.resized(size or self.schedule.size)
        z = torch.zeros(len(codes[0]), self.channels, *schedule.size, device=codes[0].device)
        for rung, written in zip(schedule.rungs, codes, strict=False):
            state = z[:, :, rung.frames]
            z[:, :, rung.frames] = self.grow(state, self.decode(written, rung), rung)
        return z

    def encode(
        self, asked: Float[Tensor, "B C _t _h _w"], rung: Rung
    ) -> Int[Tensor, "B C _t _h _w"]:
        """Codes of a_k."""
        return self.quantiser.encode(asked / self.deviation(rung))

    def decode(
        self, codes: Int[Tensor, "B C _t _h _w"], rung: Rung
    ) -> Float[Tensor, "B C _t _h _w"]:
        """r_k of codes."""
        return self.quantiser.decode(codes) * self.deviation(rung)

    def grow(
        self,
        state: Float[Tensor, "B C _t h w"],
        residual: Float[Tensor, "B C _t _h _w"],
        rung: Rung,
    ) -> Float[Tensor, "B C _t h w"]:
        """z_hat_k from z_hat_{k-1} and r_k."""
        return state + self.upsamplers[rung.kind](residual, state)

    def deviation(self, rung: Rung) -> Float[Tensor, "C 1 1 1"]:
        """sigma_k."""
        variance = self.variance.value[rung.kind]
        return variance.sqrt().clamp_min(SMALLEST_DEVIATION).view(-1, 1, 1, 1)

    def pyramid(
        self, states: Sequence[Float[Tensor, "B C _t h w"]], size: Sequence[int]
    ) -> LatentPyramid:
        """z_hat_1 .. z_hat_K of the whole latent; a ladder that is shorter stays at its last.

        Args:
            states: of all rungs, each of its segment.
        """
        schedule = self.schedule.resized(size)
        of_segment: list[list[Tensor]] = [[] for _ in schedule]
        for rung, state in zip(schedule.rungs, states, strict=True):
            of_segment[rung.segment].append(state)
        levels = [
            torch.cat([states[min(k, len(states) - 1)] for states in of_segment], dim=2)
            for k in range(schedule.num_levels)
        ]
        return LatentPyramid(levels=tuple(levels))

    @torch.no_grad()
    def measure(self, split: Split, size: Sequence[int]) -> dict[str, Tensor]:
        """What `observe` wants the mean of, over batches: variances and code frequencies."""
        kinds = len(self.upsamplers)
        variance = torch.zeros_like(self.variance.value)
        usage = torch.zeros_like(self.usage.value)
        cells = torch.zeros(kinds, device=variance.device)
        rungs = self.schedule.resized(size).rungs
        for rung, asked, codes in zip(rungs, split.pooled, split.codes, strict=True):
            flat = codes.transpose(0, 1).flatten(1)
            counts = torch.stack([(flat == level).sum(1) for level in range(self.levels)], 1)
            variance[rung.kind] += asked.square().transpose(0, 1).flatten(1).sum(1)
            usage[rung.kind] += counts
            cells[rung.kind] += flat.shape[1]
        # A kind that this size of clip has not keeps what is known of it.
        seen = cells.clamp_min(1)
        absent = (cells == 0)[:, None]
        return {
            "codec/variance": torch.where(absent, self.variance.value, variance / seen[:, None]),
            "codec/usage": torch.where(
                absent[..., None], self.usage.value, usage / seen[:, None, None]
            ),
        }

    def observe(self, means: Mapping[str, Tensor]) -> None:
        """Update the running statistics, with the means of a step over all workers."""
        self.variance.observe(means["codec/variance"])
        self.usage.observe(means["codec/usage"])

    def entropy(self) -> Float[Tensor, "R"]:
        """Mean entropy of a channel's codes as a share of ln L, per kind of rung."""
        frequencies = self.usage.value
        safe = frequencies.clamp_min(1e-12)
        nats = -(frequencies * safe.log()).sum(-1).mean(-1)
        return nats / torch.tensor(float(self.quantiser.levels)).log()
