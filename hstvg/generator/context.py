"""Context: the latent frames that a clip is given to begin with.

A long video is written block by block, each given the last frames of the one before. Those are
generated ones, so in training the given frames are noisy, by an amount that a denoiser is told
(diffusion forcing, arXiv 2407.01392).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hstvg.generator.cue import Amount, Cue
from hstvg.paths.draws import Draws
from hstvg.scales import Scale, pool
from hstvg.types import Condition, Given


@dataclass(frozen=True, kw_only=True)
class Context:
    """Which frames clips are given, and how.

    Args:
        frames: most of them, in the latent; 0 gives none.
        share: of the clips, that are given some in training.
        noise: largest deviation of the noise on them in training; latents have deviation 1.
    """

    frames: int
    share: float
    noise: float

    def __post_init__(self) -> None:
        for name in ("share", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"context_{name}={getattr(self, name)} is not from 0 to 1")

    def check(self, length: int) -> None:
        """Raises ValueError where a latent of `length` frames would have none left to write."""
        if not 0 <= self.frames < length:
            raise ValueError(
                f"context_frames={self.frames} must leave a latent of {length} frames something "
                "to write"
            )

    def accept(self, frames: Float[Tensor, "B C r h w"]) -> None:
        """Raises ValueError where a sample is given more frames than there were in training."""
        if frames.shape[2] > self.frames:
            raise ValueError(
                f"{frames.shape[2]} latent frames are given; this generator begins with at most "
                f"{self.frames}"
            )

    def draw_present(self, draws: Draws, most: int) -> Bool[Tensor, "B {most}"]:
        """Which of the first `most` frames each clip is given: the first few, or none."""
        chance = draws.uniform("context")
        count = (chance / max(self.share, 1e-9) * most).floor() + 1
        count = torch.where(chance < self.share, count, torch.zeros_like(count))
        return torch.arange(most, device=count.device) < count[:, None]

    def spoil(
        self, frames: Float[Tensor, "B C t h w"], draws: Draws
    ) -> tuple[Float[Tensor, "B C t h w"], Float[Tensor, "B"]]:
        """The frames with noise on them, and its deviation per clip."""
        return spoil(frames, self.noise, draws, "context")

    def draw(self, z: Float[Tensor, "B C t h w"], draws: Draws) -> Given | None:
        """What a denoiser is told of clips in training; None where it never is told anything."""
        if self.frames == 0:
            return None
        length = z.shape[2]
        most = min(self.frames, length - 1)  # all frames would be the answer
        frames, noise = self.spoil(z, draws)
        present = F.pad(self.draw_present(draws, most), (0, length - most))
        return Given(frames=frames, present=present, noise=noise * present.any(1))

    def told(self, frames: Float[Tensor, "B C r h w"] | None, size: Scale) -> Given | None:
        """What a denoiser of latents of a size is told of the frames that a sample begins with.

        They are said to be as noisy as those of training are on average: a generated frame is not
        what the clip's own would be, and is not to be trusted as such.

        Raises:
            ValueError: there are more of them than in training.
        """
        if frames is None:
            return None
        self.accept(frames)
        clips, _, count = frames.shape[:3]
        return Given(
            frames=F.pad(frames, (0, 0, 0, 0, 0, size.t - count)),
            present=(torch.arange(size.t, device=frames.device) < count).expand(clips, -1),
            noise=frames.new_full((clips,), self.noise / 2),
        )


class GivenCue(Cue):
    """The given frames, where they are, and how noisy.

    Args:
        latent_channels: of the frames.
        width: of the signal.
    """

    def __init__(self, latent_channels: int, width: int) -> None:
        super().__init__()
        self.channels = latent_channels + 1  # and a mask
        self.noise = Amount(width)

    def beside(
        self, x: Float[Tensor, "B C t h w"], condition: Condition
    ) -> Float[Tensor, "B Cb t h w"]:
        if condition.given is None:
            return x.new_zeros(len(x), self.channels, *x.shape[2:])
        return given_on(condition.given, Scale(*x.shape[2:])).to(x)

    def signal(
        self, signal: Float[Tensor, "B D"], condition: Condition
    ) -> Float[Tensor, "B D"] | None:
        return self.noise(condition.given.noise if condition.given else None, signal)


def given_on(given: Given, scale: Scale) -> Float[Tensor, "B Cg t h w"]:
    """The given frames on the grid of a level, C channels and a mask.

    A cell of a coarse level covers frames that are given and others that are not: it holds the mean
    of what is given of it, and the mask says how much of it that is, 0 to 1.
    """
    present = given.present[:, None, :, None, None].to(given.frames)
    share = pool(present, Scale(scale.t, 1, 1))
    mean = pool(given.frames * present, scale) / share.clamp_min(1e-6)  # 0 where the share is 0
    return torch.cat([mean, share.expand(-1, -1, *scale)], dim=1)


def spoil(
    frames: Float[Tensor, "B *shape"], most: float, draws: Draws, purpose: str
) -> tuple[Float[Tensor, "B *shape"], Float[Tensor, "B"]]:
    """Frames with noise on them, and its deviation per clip: up to `most`."""
    noise = most * draws.uniform(f"{purpose}/noise")
    white = draws.normal(f"{purpose}/white", *frames.shape[1:])
    return frames + noise.view(-1, *[1] * (frames.ndim - 1)) * white, noise


def begun(
    z: Float[Tensor, "B Cz t h w"], frames: Float[Tensor, "B C r h w"] | None
) -> Float[Tensor, "B Cz t h w"]:
    """Sampled clips that begin with exactly the frames they were given; other channels stay."""
    if frames is None:
        return z
    z = z.clone()
    z[:, : frames.shape[1], : frames.shape[2]] = frames
    return z
