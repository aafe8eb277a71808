"""VideoTokenizer: a causal 3D convolutional VAE with a continuous, multi-scale latent.

Stage 1 of training; proposal VideoAR. Time is causal: the latent of frame group i depends on frames
up to that group alone, since convolutions pad on the left and norms look at one position.

time_mode "n"     T frames in T/st groups
time_mode "1+n"   the first frame is a group of its own: T = 1 + n st. An image is a clip of one
                  frame, and the first latent frame is a segment of its own in the schedule.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.conv import TimeCache
from hstvg.nn.resample import Factor
from hstvg.nn.statistics import Statistic
from hstvg.scales import Scale, ScaleSchedule, ScheduleKind
from hstvg.tokenizer.codec import ScaleCodec
from hstvg.tokenizer.network import Decoder, Encoder
from hstvg.tokenizer.quantiser import FSQ, Quantiser
from hstvg.types import Posterior

TimeMode = Literal["n", "1+n"]


class VideoTokenizer(nn.Module):
    """Encodes [B, 3, T, H, W] pixels in [-1, 1] to a [B, C, t, H/sh, W/sw] latent and back.

    Args:
        clip_size: frames, rows and columns of one training clip; fixes the scales of the codec.
        strides: pixels per latent cell in time, rows and columns; powers of two, at least 2.
        channels: C.
        base: channels at the finest resolution inside; doubled at every further step down.
        depth: residual blocks per resolution.
        time_mode: "n" or "1+n".
        haar: patches by the Haar wavelet (as arXiv 2411.17459 does) rather than as they are.
        schedule: the kind of its scales, or their sizes: a list of segments of [t, h, w].
        quantiser: of the codec's residuals.
    """

    def __init__(
        self,
        *,
        clip_size: Sequence[int],
        strides: Sequence[int] = (2, 4, 4),
        channels: int = 8,
        base: int = 32,
        depth: int = 2,
        time_mode: TimeMode = "n",
        haar: bool = False,
        schedule: ScheduleKind | Sequence[Sequence[Sequence[int]]] = "cubic",
        quantiser: Quantiser | None = None,
    ) -> None:
        super().__init__()
        if time_mode not in ("n", "1+n"):
            raise ValueError(f'time_mode={time_mode}: choose "n" or "1+n"')
        self.strides = Factor(*strides)
        self.channels = channels
        self.first_alone = time_mode == "1+n"
        size = self.size_of(clip_size)
        if isinstance(schedule, str):
            self.schedule = ScaleSchedule.of_kind(schedule, size, first_alone=self.first_alone)
        else:
            self.schedule = ScaleSchedule(schedule)
        if self.schedule.size != size:
            raise ValueError(f"the schedule is of a latent of {self.schedule.size}, not {size}")
        if self.schedule.num_levels < 2:
            raise ValueError(f"a latent of {size} has no coarser scale; enlarge the clip")
        first_alone = self.first_alone
        self.encoder = Encoder(
            self.strides, 2 * channels, base, depth, haar=haar, first_alone=first_alone
        )
        self.decoder = Decoder(
            self.strides, channels, base, depth, haar=haar, first_alone=first_alone
        )
        self.codec = ScaleCodec(channels, self.schedule, quantiser or FSQ())
        self.mean = Statistic(torch.zeros(channels))
        self.square = Statistic(torch.ones(channels))

    @property
    def latent_size(self) -> Scale:
        return self.schedule.size

    def size_of(self, clip: Sequence[int]) -> Scale:
        """The latent grid of a clip of so many frames, rows and columns.

        Raises:
            ValueError: it is not whole.
        """
        T, H, W = clip
        alone = int(self.first_alone)
        parts = (T - alone, H, W)
        if T < 1 or any(n % stride for n, stride in zip(parts, self.strides, strict=True)):
            kind = f"1 + n x {self.strides.t}" if alone else f"n x {self.strides.t}"
            raise ValueError(
                f"a clip of {tuple(clip)} is not whole in strides {tuple(self.strides)}: frames "
                f"must be {kind}, rows and columns multiples of {self.strides.h} and "
                f"{self.strides.w}"
            )
        t, h, w = (n // stride for n, stride in zip(parts, self.strides, strict=True))
        return Scale(t + alone, h, w)

    def posterior(self, pixels: Float[Tensor, "B 3 T H W"]) -> Posterior:
        """Mean and log-variance of the raw latent, before standardisation."""
        return _posterior(self.encoder(pixels))

    def reconstruct(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels from a standardised latent, unclipped."""
        return self.decoder(self._raw(z)).float()

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        """The standardised latent: mean 0 and variance 1 per channel over the training data."""
        return self.standardise(self.posterior(pixels).mean)

    def decode(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels in [-1, 1] from a standardised latent."""
        return self.reconstruct(z).clamp(-1, 1)

    def encode_stream(
        self, chunks: Iterable[Float[Tensor, "B 3 _T H W"]]
    ) -> Iterator[Float[Tensor, "B C _t h w"]]:
        """Latents of a video of any length, chunk by chunk: those that `encode` gives of the whole.

        Args:
            chunks: whole groups of frames each; of the first, with time_mode "1+n", one frame more.
        """
        past = TimeCache()
        for pixels in chunks:
            yield self.standardise(_posterior(self.encoder(pixels, past)).mean)

    def decode_stream(
        self, chunks: Iterable[Float[Tensor, "B C _t h w"]]
    ) -> Iterator[Float[Tensor, "B 3 _T H W"]]:
        """Pixels of a latent of any length, chunk by chunk: those that `decode` gives of it."""
        past = TimeCache()
        for z in chunks:
            yield self.decoder(self._raw(z), past).float().clamp(-1, 1)

    def standardise(self, raw: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        mean, deviation = self._moments()
        return (raw - mean) / deviation

    def _raw(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        mean, deviation = self._moments()
        return z * deviation + mean

    def _moments(self) -> tuple[Float[Tensor, "C 1 1 1"], Float[Tensor, "C 1 1 1"]]:
        mean = self.mean.value
        deviation = (self.square.value - mean.square()).clamp_min(1e-8).sqrt()
        return mean.view(-1, 1, 1, 1), deviation.view(-1, 1, 1, 1)

    def measure(self, raw: Float[Tensor, "B C t h w"]) -> dict[str, Tensor]:
        """What `observe` wants the mean of, over batches."""
        axes = (0, 2, 3, 4)
        raw = raw.detach().float()
        return {"latent/mean": raw.mean(axes), "latent/square": raw.square().mean(axes)}

    def observe(self, means: Mapping[str, Tensor]) -> None:
        """Update the running moments of the raw latent and of the codec."""
        self.mean.observe(means["latent/mean"])
        self.square.observe(means["latent/square"])
        self.codec.observe(means)


def _posterior(encoded: Float[Tensor, "B C2 t h w"]) -> Posterior:
    mean, logvar = encoded.float().chunk(2, dim=1)
    return Posterior(mean=mean, logvar=logvar.clamp(-20, 10))
