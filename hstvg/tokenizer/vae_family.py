"""The ways of diffusers' video VAEs through a video: strides, batches of frames, caches.

Wan         arXiv 2503.20314: causal, one latent frame after another with a cache per convolution
CogVideoX   arXiv 2408.06072: causal, in pairs of latent frames, since its norms span a batch
LTX-Video   arXiv 2501.00103: all frames at once; its decoder also looks ahead

All of them keep the first frame as a group of its own. Weights and layers are those of diffusers,
so are the batches, and therefore the latents; only the loop over them is here, since that of
diffusers begins anew with every call.

Axes      st pixels per latent frame in time.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.nn.resample import Factor

Chunks = Iterable[Float[Tensor, "B Ci _T H W"]]
Pieces = Iterator[Float[Tensor, "B Co _t h w"]]


class VaeFamily(Protocol):
    """One kind of VAE with its weights."""

    strides: Factor
    channels: int
    frames: int
    """What the frames after the first come in multiples of."""
    streams_exactly: bool
    """Whether the streams give what the whole gives."""

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C2 t h w"]:
        """Mean and log-variance, one after the other in the channels."""
        ...

    def decode(self, raw: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]: ...

    def encode_stream(self, chunks: Chunks) -> Pieces: ...

    def decode_stream(self, chunks: Chunks) -> Pieces: ...

    def moments(self) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
        """Mean and deviation of the raw latent, as its config states them."""
        ...


class Wan:
    """AutoencoderKLWan, of Wan 2.1 and 2.2. Unlike diffusers' own decode, this does not clip."""

    streams_exactly = True

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.patch = vae.config.patch_size or 1
        space = self.patch * 2 ** (len(vae.config.dim_mult) - 1)
        self.strides = Factor(2 ** sum(vae.config.temperal_downsample), space, space)
        self.channels = vae.config.z_dim
        self.frames = self.strides.t

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C2 t h w"]:
        return torch.cat(list(self.encode_stream([pixels])), dim=2)

    def decode(self, raw: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        return torch.cat(list(self.decode_stream([raw])), dim=2)

    def encode_stream(self, chunks: Chunks) -> Pieces:
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        cache = self._cache(self.vae.encoder)
        for pixels in regrouped(chunks, 1, self.strides.t):
            patches = patchify(pixels, self.patch)
            yield self.vae.quant_conv(self.vae.encoder(patches, feat_cache=cache, feat_idx=[0]))

    def decode_stream(self, chunks: Chunks) -> Pieces:
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        cache = self._cache(self.vae.decoder)
        for number, raw in enumerate(regrouped(chunks, 1, 1)):
            patches = self.vae.decoder(
                self.vae.post_quant_conv(raw),
                feat_cache=cache,
                feat_idx=[0],
                first_chunk=number == 0,
            )
            yield unpatchify(patches, self.patch)

    def moments(self) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
        config = self.vae.config
        return torch.tensor(config.latents_mean), torch.tensor(config.latents_std)

    def _cache(self, half: Any) -> list[Any]:
        """What the causal convolutions of a half remember, in the order in which they come."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        return [None for layer in half.modules() if isinstance(layer, WanCausalConv3d)]


class CogVideoX:
    """AutoencoderKLCogVideoX. Its group norms see a batch of frames: other batches, other latents.

    A batch after the first has an even number of latent frames, or the decoder takes its first for
    that of a video: clips have 1 + n x 8 frames, where the encoder alone could do with 4.
    """

    streams_exactly = True

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        space = 2 ** (len(vae.config.block_out_channels) - 1)
        self.strides = Factor(int(vae.config.temporal_compression_ratio), space, space)
        self.channels = vae.config.latent_channels
        self.latents = vae.num_latent_frames_batch_size
        self.frames = self.latents * self.strides.t

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C2 t h w"]:
        return torch.cat(list(self.encode_stream([pixels])), dim=2)

    def decode(self, raw: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        return torch.cat(list(self.decode_stream([raw])), dim=2)

    def encode_stream(self, chunks: Chunks) -> Pieces:
        cache = None
        for pixels in regrouped(chunks, 1 + self.frames, self.frames):
            encoded, cache = self.vae.encoder(pixels, conv_cache=cache)
            yield encoded if self.vae.quant_conv is None else self.vae.quant_conv(encoded)

    def decode_stream(self, chunks: Chunks) -> Pieces:
        cache = None
        for raw in regrouped(chunks, 1 + self.latents, self.latents):
            if self.vae.post_quant_conv is not None:
                raw = self.vae.post_quant_conv(raw)
            decoded, cache = self.vae.decoder(raw, conv_cache=cache)
            yield decoded

    def moments(self) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
        deviation = torch.full((self.channels,), 1 / self.vae.config.scaling_factor)
        return torch.zeros(self.channels), deviation


class LTXVideo:
    """AutoencoderKLLTXVideo. Where its decoder takes a time, it is told that the latent is clean.

    It keeps no cache, and sees further than a chunk is long. So a stream goes through it in windows
    that overlap: each window begins as if with the first frame of a video, and what lies within
    `context` latent frames of a border that the video does not have is thrown away. What is left
    differs a little from what the whole gives, unless a window holds all of it.

    Raises:
        ValueError: its decoder draws noise, so that no two decodes are the same.
    """

    streams_exactly = False
    window = 8
    """Latent frames that a window adds."""
    context = 8
    """Latent frames that it sees of what comes before and, where a half is not causal, after."""

    def __init__(self, vae: Any) -> None:
        if any(vae.config.decoder_inject_noise):
            raise ValueError("this LTX VAE draws noise as it decodes; take one that does not")
        self.vae = vae
        space = vae.spatial_compression_ratio
        self.strides = Factor(vae.temporal_compression_ratio, space, space)
        self.channels = vae.config.latent_channels
        self.frames = self.strides.t

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C2 t h w"]:
        return self.vae.encoder(pixels)

    def decode(self, raw: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        clean = raw.new_zeros(len(raw)) if self.vae.config.timestep_conditioning else None
        return self.vae.decoder(raw, clean)

    def encode_stream(self, chunks: Chunks) -> Pieces:
        ahead = 0 if self.vae.config.encoder_causal else self.context
        for pixels, first, count in self._windows(chunks, ahead, self.strides.t):
            yield self.encode(pixels)[:, :, first : first + count]

    def decode_stream(self, chunks: Chunks) -> Pieces:
        ahead = 0 if self.vae.config.decoder_causal else self.context
        for raw, first, count in self._windows(chunks, ahead, 1):
            # The first latent frame is one frame, every other st.
            begin, end = ((n - 1) * self.strides.t + 1 for n in (first, first + count))
            yield self.decode(raw)[:, :, max(begin, 0) : end]

    def moments(self) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
        vae = self.vae
        return vae.latents_mean, vae.latents_std / vae.config.scaling_factor

    def _windows(self, chunks: Chunks, ahead: int, step: int) -> Iterator[tuple[Tensor, int, int]]:
        """Overlapping windows; of each, the latent frame from which to keep, and how many.

        Args:
            ahead: latent frames to see after those kept.
            step: items of the stream per latent frame; of the first there is one.
        """
        begin = done = 0  # latent frames: the first one held, the first one to come
        held: Tensor | None = None
        for chunk in chunks:
            held = chunk if held is None else torch.cat([held, chunk], dim=2)
            while begin + 1 + (held.shape[2] - 1) // step >= done + self.window + ahead:
                seen = done + self.window + ahead - begin
                yield held[:, :, : 1 + step * (seen - 1)], done - begin, self.window
                done += self.window
                kept = max(done - self.context, begin)
                held = held[:, :, step * (kept - begin) :]
                begin = kept
            held = held.clone()  # a view would keep the whole chunk
        if held is None:
            return
        further, rest = divmod(held.shape[2] - 1, step)
        if rest:
            raise ValueError(f"the video ends within a group of {step} frames")
        end = begin + 1 + further
        if end > done:
            yield held, done - begin, end - done


FAMILIES: Mapping[str, type[Wan] | type[CogVideoX] | type[LTXVideo]] = {
    "AutoencoderKLWan": Wan,
    "AutoencoderKLCogVideoX": CogVideoX,
    "AutoencoderKLLTXVideo": LTXVideo,
}
"""By the name of their class in diffusers."""


def regrouped(chunks: Chunks, first: int, others: int) -> Pieces:
    """The same frames in batches of `first` and then `others`; a video of one frame as it is.

    Raises:
        ValueError: the last batch is not whole.
    """
    held: Tensor | None = None
    size = first
    for chunk in chunks:
        held = chunk if held is None else torch.cat([held, chunk], dim=2)
        begin = 0
        while held.shape[2] >= begin + size:
            yield held[:, :, begin : begin + size]
            begin, size = begin + size, others
        held = held[:, :, begin:].clone()  # a view would keep the whole chunk
    if held is not None and held.shape[2] == 1 and size == first:
        yield held
    elif held is not None and held.shape[2]:
        raise ValueError(
            f"the video ends within a batch of {size} frames: it needs {first} and then whole "
            f"{others}, or is an image"
        )
