"""VideoTokenizer: a causal 3D convolutional VAE with a continuous, multi-scale latent.

Stage 1 of training; proposal VideoAR. Time is causal: the latent of frame group i depends on frames
up to that group alone, since convolutions pad on the left and norms look at one position.

time_mode "n"     T frames in T/st groups
time_mode "1+n"   the first frame is a group of its own: T = 1 + n st
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from hstvg.nn.conv import TimeCache
from hstvg.nn.resample import Factor
from hstvg.tokenizer.network import Decoder, Encoder
from hstvg.tokenizer.quantiser import Quantiser
from hstvg.tokenizer.scale_tokenizer import ScaleTokenizer, Schedule

TimeMode = Literal["n", "1+n"]


class VideoTokenizer(ScaleTokenizer):
    """The tokenizer that stage 1 trains.

    Chunk by chunk it gives exactly what it gives of the whole, a piece for every chunk. With
    time_mode "1+n" the first chunk has one frame more than whole groups.

    Args:
        clip_size: frames, rows and columns of one training clip; fixes the scales of the codec.
        strides: pixels per latent cell in time, rows and columns: powers of two times the patch.
        channels: C.
        base: channels at the finest resolution inside; doubled at every further step down.
        depth: residual blocks per resolution.
        patch: pixels folded into a cell of the finest resolution inside, 1 or 2 per axis with haar.
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
        patch: Sequence[int] = (2, 2, 2),
        time_mode: TimeMode = "n",
        haar: bool = False,
        schedule: Schedule = "cubic",
        quantiser: Quantiser | None = None,
    ) -> None:
        if time_mode not in ("n", "1+n"):
            raise ValueError(f'time_mode={time_mode}: choose "n" or "1+n"')
        if haar and max(patch) > 2:
            raise ValueError(f"patch={list(patch)}: with haar, 1 or 2 per axis")
        factor, first_alone = Factor(*strides), time_mode == "1+n"
        # Before the codec, so that a seed keeps giving the weights that it gave.
        encoder = Encoder(
            factor,
            2 * channels,
            base,
            depth,
            patch=Factor(*patch),
            haar=haar,
            first_alone=first_alone,
        )
        decoder = Decoder(
            factor, channels, base, depth, patch=Factor(*patch), haar=haar, first_alone=first_alone
        )
        super().__init__(
            clip_size=clip_size,
            strides=factor,
            channels=channels,
            first_alone=first_alone,
            schedule=schedule,
            quantiser=quantiser,
        )
        self.encoder = encoder
        self.decoder = decoder

    def _encoded(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C2 t h w"]:
        return self.encoder(pixels)

    def _decoded(self, raw: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        return self.decoder(raw)

    def _encoded_stream(
        self, chunks: Iterable[Float[Tensor, "B 3 _T H W"]]
    ) -> Iterator[Float[Tensor, "B C2 _t h w"]]:
        past = TimeCache()
        for pixels in chunks:
            yield self.encoder(pixels, past)

    def _decoded_stream(
        self, chunks: Iterable[Float[Tensor, "B C _t h w"]]
    ) -> Iterator[Float[Tensor, "B 3 _T H W"]]:
        past = TimeCache()
        for raw in chunks:
            yield self.decoder(raw, past)

    def portable(self, node: Mapping[str, Any]) -> dict[str, Any]:
        return dict(node)
