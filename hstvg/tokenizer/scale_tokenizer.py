"""ScaleTokenizer: what every tokenizer has beside its network.

The grid of its latent and the scales of it, the running moments that standardise it, and the codec
that writes it as codes. A network adds the four ways through it: pixels to the moments of a raw
latent and back, of a whole video or chunk by chunk.

Frames come in groups. In one kind of network all groups are alike; in the other the first frame is
a group of its own, T = 1 + n st, an image is a clip of one frame, and the first latent frame is a
segment of its own in the schedule.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.resample import Factor
from hstvg.nn.statistics import Statistic
from hstvg.scales import Scale, ScaleSchedule, ScheduleKind
from hstvg.tokenizer.codec import ScaleCodec
from hstvg.tokenizer.quantiser import FSQ, Quantiser
from hstvg.types import Posterior

Schedule = ScheduleKind | Sequence[Sequence[Sequence[int]]]
"""A kind of schedule, or its sizes: a list of segments of [t, h, w]."""


class ScaleTokenizer(nn.Module, ABC):
    """Encodes [B, 3, T, H, W] pixels in [-1, 1] to a [B, C, t, H/sh, W/sw] latent and back.

    Args:
        clip_size: frames, rows and columns of one training clip; fixes the scales of the codec.
        strides: pixels per latent cell in time, rows and columns.
        channels: C.
        first_alone: whether the first frame is a group of its own.
        schedule: of a clip of clip_size.
        quantiser: of the codec's residuals.
        frames: what the others of a clip come in multiples of; strides in time if not given.

    Raises:
        ValueError: the clip is not whole in strides, or the schedule is of another latent.
    """

    streams_exactly = True
    """Whether the streams give what `encode` and `decode` give of the whole, and not something
    near it."""

    def __init__(
        self,
        *,
        clip_size: Sequence[int],
        strides: Factor,
        channels: int,
        first_alone: bool,
        schedule: Schedule,
        quantiser: Quantiser | None,
        frames: int | None = None,
    ) -> None:
        super().__init__()
        self.strides = strides
        self.channels = channels
        self.first_alone = first_alone
        self.frames = frames or strides.t
        size = self.size_of(clip_size)
        if isinstance(schedule, str):
            self.schedule = ScaleSchedule.of_kind(schedule, size, first_alone=first_alone)
        else:
            self.schedule = ScaleSchedule(schedule)
        if self.schedule.size != size:
            raise ValueError(f"the schedule is of a latent of {self.schedule.size}, not {size}")
        if self.schedule.num_levels < 2:
            raise ValueError(f"a latent of {size} has no coarser scale; enlarge the clip")
        self.codec = ScaleCodec(channels, self.schedule, quantiser or FSQ())
        self.mean = Statistic(torch.zeros(channels))
        self.square = Statistic(torch.ones(channels))

    # ---- the network --------------------------------------------------------------------------

    @abstractmethod
    def _encoded(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C2 t h w"]:
        """Mean and log-variance of the raw latent, one after the other in the channels."""

    @abstractmethod
    def _decoded(self, raw: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels of a raw latent."""

    @abstractmethod
    def _encoded_stream(
        self, chunks: Iterable[Float[Tensor, "B 3 _T H W"]]
    ) -> Iterator[Float[Tensor, "B C2 _t h w"]]:
        """`_encoded`, chunk by chunk."""

    @abstractmethod
    def _decoded_stream(
        self, chunks: Iterable[Float[Tensor, "B C _t h w"]]
    ) -> Iterator[Float[Tensor, "B 3 _T H W"]]:
        """`_decoded`, chunk by chunk."""

    @abstractmethod
    def portable(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """A config node of it that builds its like, without weights, out of nothing else.

        Args:
            node: that it was built from.
        """

    # ---- the latent ---------------------------------------------------------------------------

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
        whole = (self.frames, *self.strides[1:])
        if T < 1 or any(n % m for n, m in zip(parts, whole, strict=True)):
            kind = f"1 + n x {self.frames}" if alone else f"n x {self.frames}"
            raise ValueError(
                f"a clip of {tuple(clip)} is not whole in strides {tuple(self.strides)}: frames "
                f"must be {kind}, rows and columns multiples of {self.strides.h} and "
                f"{self.strides.w}"
            )
        t, h, w = (n // stride for n, stride in zip(parts, self.strides, strict=True))
        return Scale(t + alone, h, w)

    def posterior(self, pixels: Float[Tensor, "B 3 T H W"]) -> Posterior:
        """Mean and log-variance of the raw latent, before standardisation."""
        return _posterior(self._encoded(pixels))

    def reconstruct(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels from a standardised latent, unclipped."""
        return self._decoded(self._raw(z)).float()

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        """The standardised latent: mean 0 and variance 1 per channel over the training data."""
        return self.standardise(self.posterior(pixels).mean)

    def decode(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels in [-1, 1] from a standardised latent."""
        return self.reconstruct(z).clamp(-1, 1)

    def encode_stream(
        self, chunks: Iterable[Float[Tensor, "B 3 _T H W"]]
    ) -> Iterator[Float[Tensor, "B C _t h w"]]:
        """Latents of a video of any length, in the memory of a chunk: put together, those that
        `encode` gives of the whole, if `streams_exactly`.

        Args:
            chunks: whole groups of frames each.
        """
        for encoded in self._encoded_stream(chunks):
            yield self.standardise(_posterior(encoded).mean)

    def decode_stream(
        self, chunks: Iterable[Float[Tensor, "B C _t h w"]]
    ) -> Iterator[Float[Tensor, "B 3 _T H W"]]:
        """Pixels of a latent of any length, in the memory of a chunk: put together, those that
        `decode` gives of the whole, if `streams_exactly`."""
        for pixels in self._decoded_stream(self._raw(z) for z in chunks):
            yield pixels.float().clamp(-1, 1)

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
