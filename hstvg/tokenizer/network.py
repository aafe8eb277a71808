"""The convolutional halves of the tokenizer: pixels to latent and back, causal in time."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.conv import FactorisedConv, ResidualBlock, TimeCache, zero_init
from hstvg.nn.norm import ChannelNorm
from hstvg.nn.resample import Down, Factor, Up, from_depth, haar, to_depth


class Encoder(nn.Module):
    """Patch, then residual blocks with a step down between resolutions, beside a linear shortcut.

    The shortcut maps the pixels of one latent cell straight to its channels, and the deep path
    starts at zero beside it: training begins near a patch PCA (idea of arXiv 2410.10733).

    Args:
        patch: pixels per cell at the finest resolution inside.
        haar: patches as wavelet coefficients.
        first_alone: the first frame is a group of its own, repeated to the length of a group.
    """

    def __init__(
        self,
        strides: Factor,
        channels: int,
        base: int,
        depth: int,
        *,
        patch: Factor,
        haar: bool = False,
        first_alone: bool = False,
    ) -> None:
        super().__init__()
        steps = steps_of(strides, patch)
        self.patch = patch
        widths = [base * 2**i for i in range(len(steps) + 1)]
        self.strides = strides
        self.haar = haar
        self.first_alone = first_alone
        self.enter = FactorisedConv(3 * patch.volume, base, causal=True)
        layers: list[nn.Module] = _blocks(base, depth)
        for step, before, after in zip(steps, widths, widths[1:], strict=False):
            layers += [Down(before, after, step), *_blocks(after, depth)]
        self.body = nn.ModuleList(layers)
        self.norm = ChannelNorm(widths[-1])
        self.leave = zero_init(nn.Conv3d(widths[-1], channels, 1))
        self.shortcut = nn.Conv3d(3 * strides.volume, channels, 1)
        # The second half of the channels is the log-variance: start nearly without noise.
        with torch.no_grad():
            self.shortcut.weight[channels // 2 :].zero_()
            assert self.shortcut.bias is not None
            self.shortcut.bias[channels // 2 :] = -6.0

    def forward(
        self, pixels: Float[Tensor, "B 3 T H W"], past: TimeCache | None = None
    ) -> Float[Tensor, "B C t h w"]:
        """Args:
        past: of the chunks of the same video before this one.
        """
        pixels = pixels.to(self.leave.weight.dtype)
        if self.first_alone and _begins(self, past):
            first = pixels[:, :, :1].expand(-1, -1, self.strides.t - 1, -1, -1)
            pixels = torch.cat([first, pixels], dim=2)
        patches = to_depth(pixels, self.patch)
        x = self.enter(haar(patches, self.patch) if self.haar else patches, past)
        x = _through(self.body, x, past)
        return self.leave(F.silu(self.norm(x))) + self.shortcut(to_depth(pixels, self.strides))


class Decoder(nn.Module):
    """The encoder in reverse; its last map writes a patch of pixels per cell."""

    def __init__(
        self,
        strides: Factor,
        channels: int,
        base: int,
        depth: int,
        *,
        patch: Factor,
        haar: bool = False,
        first_alone: bool = False,
    ) -> None:
        super().__init__()
        steps = steps_of(strides, patch)
        self.patch = patch
        widths = [base * 2**i for i in range(len(steps) + 1)]
        self.strides = strides
        self.haar = haar
        self.first_alone = first_alone
        self.enter = FactorisedConv(channels, widths[-1], causal=True)
        layers: list[nn.Module] = _blocks(widths[-1], depth)
        for step, before, after in zip(
            reversed(steps), reversed(widths), reversed(widths[:-1]), strict=False
        ):
            layers += [Up(before, after, step), *_blocks(after, depth)]
        self.body = nn.ModuleList(layers)
        self.norm = ChannelNorm(base)
        self.leave = zero_init(nn.Conv3d(base, 3 * patch.volume, 1))
        self.shortcut = nn.Conv3d(channels, 3 * strides.volume, 1)

    def forward(
        self, z: Float[Tensor, "B C t h w"], past: TimeCache | None = None
    ) -> Float[Tensor, "B 3 T H W"]:
        """Args:
        past: of the chunks of the same latent before this one.
        """
        z = z.to(self.leave.weight.dtype)
        begins = _begins(self, past)
        x = _through(self.body, self.enter(z, past), past)
        patches = self.leave(F.silu(self.norm(x)))
        patches = haar(patches, self.patch) if self.haar else patches
        pixels = from_depth(patches, self.patch) + from_depth(self.shortcut(z), self.strides)
        return pixels[:, :, self.strides.t - 1 :] if self.first_alone and begins else pixels


def _begins(half: Encoder | Decoder, past: TimeCache | None) -> bool:
    """Whether a chunk is the first of its video."""
    return past is None or half.enter not in past


def _through(layers: nn.ModuleList, x: Tensor, past: TimeCache | None) -> Tensor:
    for layer in layers:
        x = layer(x, past) if isinstance(layer, ResidualBlock) else layer(x)
    return x


def _blocks(channels: int, depth: int) -> list[nn.Module]:
    return [ResidualBlock(channels, causal=True) for _ in range(depth)]


def steps_of(strides: Factor, patch: Factor) -> list[Factor]:
    """Steps of at most 2 per axis that, after the patch, make up the strides.

    Raises:
        ValueError: they cannot.
    """
    pairs = list(zip(strides, patch, strict=True))
    left = [stride // n for stride, n in pairs]
    if any(stride % n for stride, n in pairs) or any(n & (n - 1) for n in left):
        raise ValueError(
            f"strides {tuple(strides)} are not powers of two of at least {tuple(patch)}"
        )
    steps = []
    while any(n > 1 for n in left):
        step = Factor(*(2 if n > 1 else 1 for n in left))
        left = [n // f for n, f in zip(left, step, strict=True)]
        steps.append(step)
    return steps
