"""Prefixes: the coarse scales of a latent that are written before a denoiser takes over.

p(z | c) = prod_{k <= kappa} P_theta(r_k | r_<k, c) p_phi(z | z_hat_kappa, c): this module says what
phi is told of z_hat_kappa. In training the scales are those of the clip itself, some of their codes
wrong, so that phi does not trust what theta will write more than it deserves (conditioning
augmentation, arXiv 2104.07636).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hstvg.generator.cue import Amount, Cue
from hstvg.generator.flaws import miswrite, share
from hstvg.paths.draws import Draws
from hstvg.scales import Ladder, Scale, pool
from hstvg.types import Codec, Condition, Prefix


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """What a config says of them.

    Args:
        none: share of clips trained without a prefix, kappa = 0.
        corruption: largest share of wrong codes; half of the clips have none.
    """

    none: float = 0.4
    corruption: float = 0.3

    def __post_init__(self) -> None:
        for name in ("none", "corruption"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is a share: from 0, and below 1")


def ladder_of(codec: Codec) -> Ladder:
    """The codec's scales.

    Raises:
        ValueError: they come in several segments, so that a prefix is not the whole clip, coarse.
    """
    if len(codec.schedule) > 1:
        raise ValueError(
            "a denoiser goes on from a clip written in one segment; train a tokenizer with "
            "tokenizer.schedule=cubic or space"
        )
    return codec.schedule[0]


@dataclass(frozen=True, kw_only=True)
class Written:
    """The scales of a batch, each as a prefix, and how long a prefix each clip has."""

    states: Float[Tensor, "scales B C t h w"]
    """z_hat_k, k = 0 .. K - 1; of k = 0 zero."""
    kappa: Int[Tensor, "B"]
    corruption: Float[Tensor, "B"]

    def up_to(self, most: int) -> Prefix:
        """The prefixes, none longer than `most` scales."""
        kappa = self.kappa.clamp_max(most)
        state = self.states[kappa, torch.arange(len(kappa), device=kappa.device)]
        return Prefix(state=state, kappa=kappa, corruption=self.corruption * (kappa > 0))


@torch.no_grad()
def write(z: Float[Tensor, "B C t h w"], codec: Codec, draws: Draws, settings: Prefixes) -> Written:
    """Prefixes to train with."""
    schedule = codec.schedule.resized(z.shape[2:])
    most = settings.corruption * share(draws, "corruption", 4)

    def corrupt(codes: Tensor, number: int) -> Tensor:
        return miswrite(codes, number, codec, draws, most, channels=codec.channels)

    states = codec.split(z, corrupt=corrupt).states[:-1]
    last = len(schedule.rungs) - 1
    chance = draws.uniform("kappa")
    kappa = ((chance - settings.none) / (1 - settings.none) * last).floor().long() + 1
    return Written(
        states=torch.stack([torch.zeros_like(z), *states]),
        kappa=torch.where(chance < settings.none, torch.zeros_like(kappa), kappa),
        corruption=most.flatten(),
    )


class PrefixCue(Cue):
    """The scales that are written already, how many they are and how far they are to be trusted.

    Args:
        channels: of the latent.
        num_kappas: how many scales may be written, none included.
        width: of the signal.
    """

    def __init__(self, channels: int, num_kappas: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.kappa = nn.Embedding(num_kappas, width)
        self.corruption = Amount(width)

    def beside(
        self, x: Float[Tensor, "B C t h w"], condition: Condition
    ) -> Float[Tensor, "B Cb t h w"]:
        if condition.prefix is None:
            return x.new_zeros(len(x), self.channels, *x.shape[2:])
        return pool(condition.prefix.state, Scale(*x.shape[2:])).to(x)

    def signal(
        self, signal: Float[Tensor, "B D"], condition: Condition
    ) -> Float[Tensor, "B D"] | None:
        prefix = condition.prefix
        if prefix is None:
            none = torch.zeros(len(signal), dtype=torch.long, device=signal.device)
            return self.kappa(none) + self.corruption(None, signal)
        return self.kappa(prefix.kappa) + self.corruption(prefix.corruption, signal)


def longest(scales: Ladder, level: Scale) -> int:
    """How many of the codec's scales are coarser than a level of the pyramid."""
    return sum(scale.volume < level.volume for scale in scales)


def first_level(scales: Ladder, levels: Ladder, kappa: int) -> int | None:
    """The pyramid level with which a denoiser goes on after kappa scales; None where there is none
    that begins where they end: it is 0 if they are all coarser than it."""
    if kappa == 0 or scales[kappa - 1].volume < levels[0].volume:
        return 0
    before = [level for level, scale in enumerate(levels) if scale == scales[kappa - 1]]
    return before[0] + 1 if before and before[0] + 1 < len(levels) else None


def handed_over(prefix: Prefix, scales: Ladder, before: Scale) -> Bool[Tensor, "B"]:
    """Which prefixes end with the level `before`, so that the next one starts from them."""
    ends = [k + 1 for k, scale in enumerate(scales) if scale == before]
    return torch.isin(prefix.kappa, torch.tensor(ends, device=prefix.kappa.device))


def coarse_of(prefix: Prefix, scale: Scale, motion_channels: int) -> Float[Tensor, "B C t h w"]:
    """A prefix as the clean latent of a level; it says nothing of motion, whose channels are 0."""
    coarse = pool(prefix.state, scale)
    motion = coarse.new_zeros(len(coarse), motion_channels, *scale)
    return torch.cat([coarse, motion], dim=1)
