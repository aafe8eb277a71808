"""VideoTokenizer: a causal 3D convolutional VAE with a continuous, multi-scale latent.

Stage 1 of training; proposal VideoAR. Time is causal: the latent of frame group i depends on frames
up to that group alone, since convolutions pad on the left and norms look at one position.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.conv import FactorisedConv, ResidualBlock, zero_init
from hstvg.nn.norm import ChannelNorm
from hstvg.nn.resample import Down, Factor, Up, from_depth, to_depth
from hstvg.scales import Scale, ScaleSchedule
from hstvg.tokenizer.codec import ScaleCodec
from hstvg.types import Posterior

PATCH = Factor(2, 2, 2)


class VideoTokenizer(nn.Module):
    """Encodes [B, 3, T, H, W] pixels in [-1, 1] to a [B, C, T/st, H/sh, W/sw] latent and back.

    Args:
        clip_size: frames, rows and columns of one training clip; fixes the scales of the codec.
        strides: pixels per latent cell in time, rows and columns; powers of two, at least 2.
        channels: C.
        base: channels at the finest resolution inside; doubled at every further step down.
        depth: residual blocks per resolution.
    """

    def __init__(
        self,
        *,
        clip_size: Sequence[int],
        strides: Sequence[int] = (2, 4, 4),
        channels: int = 8,
        base: int = 32,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.strides = Factor(*strides)
        self.channels = channels
        if any(size % stride for size, stride in zip(clip_size, strides, strict=True)):
            raise ValueError(
                f"a clip of {tuple(clip_size)} is not whole in strides {tuple(strides)}"
            )
        self.scales = ScaleSchedule.cubic(
            [size // stride for size, stride in zip(clip_size, strides, strict=True)]
        )
        if len(self.scales) < 2:
            raise ValueError(
                f"a latent of {self.scales.last} has no coarser scale; enlarge the clip"
            )
        self.encoder = Encoder(self.strides, 2 * channels, base, depth)
        self.decoder = Decoder(self.strides, channels, base, depth)
        self.codec = ScaleCodec(channels, self.scales)
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1, 1))
        self.register_buffer("latent_std", torch.ones(channels, 1, 1, 1))

    @property
    def latent_size(self) -> Scale:
        return self.scales.last

    def posterior(self, pixels: Float[Tensor, "B 3 T H W"]) -> Posterior:
        """Mean and log-variance of the raw latent, before standardisation."""
        mean, logvar = self.encoder(pixels).float().chunk(2, dim=1)
        return Posterior(mean=mean, logvar=logvar.clamp(-20, 10))

    def reconstruct(self, raw: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels from a raw latent, unclipped."""
        return self.decoder(raw).float()

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        """The standardised latent: mean 0 and variance 1 per channel over the training data."""
        return (self.posterior(pixels).mean - self.latent_mean) / self.latent_std

    def decode(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels in [-1, 1] from a standardised latent."""
        return self.reconstruct(z * self.latent_std + self.latent_mean).clamp(-1, 1)

    @torch.no_grad()
    def calibrate(self, clips: Sequence[Float[Tensor, "B 3 T H W"]]) -> None:
        """Measure the mean and deviation that standardise the latent."""
        raw = torch.cat([self.posterior(pixels).mean for pixels in clips])
        self.latent_mean.copy_(raw.mean(dim=(0, 2, 3, 4)).view(-1, 1, 1, 1))
        self.latent_std.copy_(raw.std(dim=(0, 2, 3, 4)).clamp_min(1e-4).view(-1, 1, 1, 1))


class Encoder(nn.Module):
    """Patch, then residual blocks with a step down between resolutions, beside a linear shortcut.

    The shortcut maps the pixels of one latent cell straight to its channels, and the deep path
    starts at zero beside it: training begins near a patch PCA (idea of arXiv 2410.10733).
    """

    def __init__(self, strides: Factor, channels: int, base: int, depth: int) -> None:
        super().__init__()
        steps = _steps(strides)
        widths = [base * 2**i for i in range(len(steps) + 1)]
        self.strides = strides
        self.enter = FactorisedConv(3 * PATCH.volume, base, causal=True)
        layers: list[nn.Module] = _blocks(base, depth)
        for step, before, after in zip(steps, widths, widths[1:], strict=False):
            layers += [Down(before, after, step), *_blocks(after, depth)]
        self.body = nn.Sequential(*layers)
        self.norm = ChannelNorm(widths[-1])
        self.leave = zero_init(nn.Conv3d(widths[-1], channels, 1))
        self.shortcut = nn.Conv3d(3 * strides.volume, channels, 1)
        # The second half of the channels is the log-variance: start nearly without noise.
        with torch.no_grad():
            self.shortcut.weight[channels // 2 :].zero_()
            assert self.shortcut.bias is not None
            self.shortcut.bias[channels // 2 :] = -6.0

    def forward(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        pixels = pixels.to(self.leave.weight.dtype)
        x = self.body(self.enter(to_depth(pixels, PATCH)))
        return self.leave(F.silu(self.norm(x))) + self.shortcut(to_depth(pixels, self.strides))


class Decoder(nn.Module):
    """The encoder in reverse; its last map writes a 2x2x2 block of pixels per cell."""

    def __init__(self, strides: Factor, channels: int, base: int, depth: int) -> None:
        super().__init__()
        steps = _steps(strides)
        widths = [base * 2**i for i in range(len(steps) + 1)]
        self.strides = strides
        self.enter = FactorisedConv(channels, widths[-1], causal=True)
        layers: list[nn.Module] = _blocks(widths[-1], depth)
        for step, before, after in zip(
            reversed(steps), reversed(widths), reversed(widths[:-1]), strict=False
        ):
            layers += [Up(before, after, step), *_blocks(after, depth)]
        self.body = nn.Sequential(*layers)
        self.norm = ChannelNorm(base)
        self.leave = zero_init(nn.Conv3d(base, 3 * PATCH.volume, 1))
        self.shortcut = nn.Conv3d(channels, 3 * strides.volume, 1)

    def forward(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        z = z.to(self.leave.weight.dtype)
        deep = self.leave(F.silu(self.norm(self.body(self.enter(z)))))
        return from_depth(deep, PATCH) + from_depth(self.shortcut(z), self.strides)


def _blocks(channels: int, depth: int) -> list[nn.Module]:
    return [ResidualBlock(channels, causal=True) for _ in range(depth)]


def _steps(strides: Factor) -> list[Factor]:
    """Steps of at most 2 per axis that, after the patch, make up the strides."""
    left = [stride // patch for stride, patch in zip(strides, PATCH, strict=True)]
    if any(stride % patch for stride, patch in zip(strides, PATCH, strict=True)) or any(
        n & (n - 1) for n in left
    ):
        raise ValueError(f"strides {tuple(strides)} are not powers of two of at least 2")
    steps = []
    while any(n > 1 for n in left):
        step = Factor(*(2 if n > 1 else 1 for n in left))
        left = [n // f for n, f in zip(left, step, strict=True)]
        steps.append(step)
    return steps
