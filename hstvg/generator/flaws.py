"""Flaws of a latent that the frames beside a frame can mend: independent from frame to frame.

Blur, or detail that is missing everywhere, is no such flaw: what is to be learnt from it is a
sharpener of single frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hstvg.paths.draws import Draws
from hstvg.scales import Rung
from hstvg.types import Codec, Corrupt


@dataclass(frozen=True, kw_only=True)
class Flaws:
    """How large they get. Of each kind half of the clips have none, for what is right must be left
    alone, and the others a size between none and the largest."""

    jitter: float = 0.3
    """Deviation of a channel's gain, and of its bias, from frame to frame; a standardised latent
    deviates by 1."""
    drift: float = 0.3
    """Deviation that a random walk of gain and bias has reached at the end of a clip."""
    wrong: float = 0.2
    """Share of cells whose codes are random ones."""

    def unsteady(self, z: Float[Tensor, "B C t h w"], draws: Draws) -> Float[Tensor, "B C t h w"]:
        """(1 + gain) z + bias, both per channel and frame."""
        C, t = z.shape[1:3]
        jitter = share(draws, "jitter/size", 3) * draws.normal("jitter", 2, C, t)
        walk = share(draws, "drift/size", 3) * draws.normal("drift", 2, C, t).cumsum(-1) / sqrt(t)
        wobble = self.jitter * jitter + self.drift * walk
        gain, bias = wobble[..., None, None].unbind(1)
        return (1 + gain) * z + bias

    def miswritten(
        self, z: Float[Tensor, "B C t h w"], codec: Codec, draws: Draws
    ) -> Float[Tensor, "B C t h w"]:
        """z, and what wrong codes make different; what quantisation takes away is left in it."""
        size = z.shape[2:]
        corrupt = self._corrupt(codec, codec.schedule.resized(size).rungs, draws)
        wrong, right = (
            codec.pyramid(codec.split(z, corrupt=change).states, size).finest
            for change in (corrupt, None)
        )
        return z + wrong - right

    def _corrupt(self, codec: Codec, rungs: Sequence[Rung], draws: Draws) -> Corrupt:
        """Wrong codes at rungs of full size, cell by cell. The finer rungs correct those of a
        coarser one, which would be common to many frames."""
        most = self.wrong * share(draws, "wrong/size", 4)

        def corrupt(codes: Tensor, number: int) -> Tensor:
            if rungs[number].scale != rungs[number].size:
                return codes
            return miswrite(codes, number, codec, draws, most, channels=1)

        return corrupt


def miswrite(
    codes: Int[Tensor, "B C t h w"],
    number: int,
    codec: Codec,
    draws: Draws,
    most: Float[Tensor, "B *ones"],
    channels: int,
) -> Int[Tensor, "B C t h w"]:
    """Codes of a rung, a share of them random ones.

    Args:
        most: the share, per clip.
        channels: C draws each channel apart, 1 all channels of a cell together.
    """
    random = (draws.uniform(f"code/{number}", *codes.shape[1:]) * codec.levels).long()
    wrong = draws.uniform(f"wrong/{number}", channels, *codes.shape[2:]) < most
    return torch.where(wrong, random, codes)


def share(draws: Draws, purpose: str, axes: int) -> Float[Tensor, "B *ones"]:
    """Of a largest size, per clip: 0 with even chances, else uniform up to 1."""
    return (2 * draws.uniform(purpose, *[1] * axes) - 1).clamp_min(0)
