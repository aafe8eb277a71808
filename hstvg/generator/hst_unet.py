"""HSTUNet: the hierarchical space-time U-Net that guesses velocities.

Proposal Hierarchical Video Generation, hierarchical space-time diffusion. Three kinds of level,
each half as fine in space and time as the one before (arXiv 2401.12945): local levels convolve,
regional ones also attend within windows, the global one attends over the whole clip; regional and
global cells read the text. One network serves every level of the pyramid and is told which.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hstvg.generator.context import given_on
from hstvg.generator.style import StyleAdapter, StyleAttention, Styling
from hstvg.nn.attention import SpaceTimeAttention, TextAttention
from hstvg.nn.conv import FactorisedConv, zero_init
from hstvg.nn.correspondence import CorrespondenceAttention, Lookup
from hstvg.nn.embed import embed_time
from hstvg.nn.norm import ChannelNorm
from hstvg.nn.resample import Down, Factor, Up
from hstvg.scales import Scale, pool
from hstvg.types import Condition

Kind = Literal["local", "regional", "global"]
HALVE = Factor(2, 2, 2)


class HSTUNet(nn.Module):
    """Velocity of x at path time tau, given a condition.

    Args:
        channels: of x; appearance and motion together.
        latent_size: (t, h, w) of the final grid.
        num_levels: pyramid levels it serves.
        text_width: width of the condition's text tokens.
        widths: channels per U-Net level, finest first.
        kinds: "local", "regional" or "global" per U-Net level.
        depth: blocks per U-Net level, on the way down and again on the way up.
        window: cells per axis of a regional window.
        checkpointing: recompute each level in the backward pass instead of keeping its activations.
        moving_noise: it is told how much of the noise moves, the alpha of the condition.
        prefix_channels: of the coarse scales that may be written already; 0 if none ever are.
        num_kappas: how many of them may be, none included.
        given_channels: of the frames that a clip may be given to begin with; 0 if none ever are.
        correspondence: heads of their own learn where things go, which L_attention asks them.
    """

    def __init__(
        self,
        *,
        channels: int,
        latent_size: Sequence[int],
        num_levels: int,
        text_width: int,
        widths: Sequence[int] = (64, 128),
        kinds: Sequence[Kind] = ("local", "global"),
        depth: int = 1,
        window: int = 4,
        head_dim: int = 32,
        checkpointing: bool = False,
        moving_noise: bool = False,
        prefix_channels: int = 0,
        num_kappas: int = 1,
        given_channels: int = 0,
        correspondence: bool = False,
    ) -> None:
        super().__init__()
        width = widths[-1]
        self.checkpointing = checkpointing
        self.prefix_channels = prefix_channels
        self.given_channels = given_channels
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.level = nn.Embedding(num_levels, width)
        self.text = nn.Linear(text_width, width)
        beside = prefix_channels + (given_channels + 1 if given_channels else 0)  # and a mask
        self.enter = FactorisedConv(channels + beside, widths[0], causal=False)

        def level(i: int) -> Level:
            return Level(
                widths[i],
                width,
                text_width,
                kind=kinds[i],
                depth=depth,
                window=window,
                head_dim=head_dim,
                reference=latent_size,
            )

        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(level(i) for i in range(len(widths) - 1))
        self.shrink = nn.ModuleList(Down(fine, coarse, HALVE) for fine, coarse in pairs)
        self.middle = level(len(widths) - 1)
        self.grow = nn.ModuleList(Up(coarse, fine, HALVE) for fine, coarse in pairs)
        self.join = nn.ModuleList(nn.Conv3d(2 * fine, fine, 1) for fine, _ in pairs)
        self.up = nn.ModuleList(level(i) for i in range(len(widths) - 1))
        self.norm = ChannelNorm(widths[0])
        self.leave = zero_init(nn.Conv3d(widths[0], channels, (1, 3, 3), padding=(0, 1, 1)))
        # The last ones, so that all others start as they would without them.
        self.alpha = silent(width) if moving_noise else None
        self.kappa = nn.Embedding(num_kappas, width) if prefix_channels else None
        self.corruption = silent(width) if prefix_channels else None
        self.given_noise = silent(width) if given_channels else None
        self.correspondence = None
        if correspondence:
            self.correspondence = CorrespondenceAttention(widths[0], head_dim=head_dim)
        self.style: StyleAdapter | None = None

    def add_style(self, style: Styling | None, num_statistics: int) -> None:
        """Let it be told how the clip is to look, by so many statistics; None does nothing."""
        if style is None:
            return
        self.style = StyleAdapter(style, num_statistics, self.level.embedding_dim)
        for block in self.modules():
            if isinstance(block, Level):
                block.add_style(style.width)

    def forward(
        self,
        x: Float[Tensor, "B C t h w"],
        tau: Float[Tensor, "B"],
        level: int,
        condition: Condition,
    ) -> Float[Tensor, "B C t h w"]:
        return self.head(self.trunk(x, tau, level, condition))[0]

    def trunk(
        self,
        x: Float[Tensor, "B C t h w"],
        tau: Float[Tensor, "B"],
        level: int,
        condition: Condition,
    ) -> Float[Tensor, "B D t h w"]:
        """What appearance and motion are both read from."""
        signal, tokens = self._signal(tau, level, condition), None
        if self.style is not None:
            look, tokens = self.style(condition.style, signal)
            signal = signal + look
        parts = [x]
        if self.prefix_channels:
            parts.append(self._written(x, condition))
        if self.given_channels:
            parts.append(self._given(x, condition))
        x = torch.cat(parts, dim=1)
        x = self.enter(x.to(self.enter.space.weight.dtype))
        skips = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = self._through(block, x, signal, condition, tokens)
            skips.append(x)
            x = shrink(x)
        x = self._through(self.middle, x, signal, condition, tokens)
        for i in reversed(range(len(skips))):
            x = self.join[i](torch.cat([self.grow[i](x), skips[i]], dim=1))
            x = self._through(self.up[i], x, signal, condition, tokens)
        return x

    def _through(
        self, block: nn.Module, x: Float[Tensor, "B D t h w"], *told: object
    ) -> Float[Tensor, "B D t h w"]:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, *told, use_reentrant=False)
        return block(x, *told)

    def head(
        self, x: Float[Tensor, "B D t h w"], lookup: Lookup | None = None
    ) -> tuple[Float[Tensor, "B C t h w"], Float[Tensor, "B S A cells"] | None]:
        """The velocity and, of the cells looked up, the log probability of where they went."""
        rows = None
        if self.correspondence is not None:
            x, rows = self.correspondence(x, lookup)
        return self.leave(F.silu(self.norm(x))), rows

    def _written(
        self, x: Float[Tensor, "B C t h w"], condition: Condition
    ) -> Float[Tensor, "B Cp t h w"]:
        """The scales that are written already, on the grid of x; zero where there are none."""
        if condition.prefix is None:
            return x.new_zeros(len(x), self.prefix_channels, *x.shape[2:])
        return pool(condition.prefix.state, Scale(*x.shape[2:])).to(x)

    def _given(
        self, x: Float[Tensor, "B C t h w"], condition: Condition
    ) -> Float[Tensor, "B Cg t h w"]:
        """The given frames and their mask, on the grid of x; zero where there are none."""
        if condition.given is None:
            return x.new_zeros(len(x), self.given_channels + 1, *x.shape[2:])
        return given_on(condition.given, Scale(*x.shape[2:])).to(x)

    def _signal(
        self, tau: Float[Tensor, "B"], level: int, condition: Condition
    ) -> Float[Tensor, "B D"]:
        """What every block is told: the time, the pyramid level and the gist of the text."""
        time = self.time(embed_time(tau, self.level.embedding_dim).to(condition.text.dtype))
        index = torch.full((len(tau),), level, device=tau.device)
        mask = condition.text_mask[..., None].to(condition.text.dtype)
        gist = self.text((condition.text * mask).sum(1) / mask.sum(1))
        signal = time + self.level(index) + gist
        if self.alpha is not None:
            alpha = torch.zeros_like(tau) if condition.alpha is None else condition.alpha
            signal = signal + self.alpha(embed_time(alpha, signal.shape[1]).to(signal.dtype))
        if self.kappa is not None and self.corruption is not None:
            kappa, corruption = torch.zeros_like(index), torch.zeros_like(tau)
            if condition.prefix is not None:
                kappa, corruption = condition.prefix.kappa, condition.prefix.corruption
            wrong = self.corruption(embed_time(corruption, signal.shape[1]).to(signal.dtype))
            signal = signal + self.kappa(kappa) + wrong
        if self.given_noise is not None:
            noise = torch.zeros_like(tau) if condition.given is None else condition.given.noise
            signal = signal + self.given_noise(embed_time(noise, signal.shape[1]).to(signal.dtype))
        return F.silu(signal)


def silent(width: int) -> nn.Module:
    """A map from an embedded number to the signal, which says nothing at first."""
    return zero_init(nn.Linear(width, width, bias=False))


class Level(nn.Module):
    """The blocks of one U-Net level at one resolution."""

    def __init__(
        self,
        width: int,
        signal_width: int,
        text_width: int,
        *,
        kind: Kind,
        depth: int,
        window: int,
        head_dim: int,
        reference: Sequence[int],
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ModulatedBlock(width, signal_width) for _ in range(depth))
        self.attends = kind != "local"
        count = depth if self.attends else 0
        reach = window if kind == "regional" else None
        self.selves = nn.ModuleList(
            SpaceTimeAttention(width, head_dim=head_dim, window=reach, reference=reference)
            for _ in range(count)
        )
        self.texts = nn.ModuleList(
            TextAttention(width, text_width, head_dim=head_dim) for _ in range(count)
        )
        self.width, self.head_dim = width, head_dim
        self.styles = nn.ModuleList()

    def add_style(self, token_width: int) -> None:
        """Attention to the tokens of a style, beside every one to the text."""
        self.styles.extend(
            StyleAttention(self.width, token_width, head_dim=self.head_dim) for _ in self.texts
        )

    def forward(
        self,
        x: Float[Tensor, "B C t h w"],
        signal: Float[Tensor, "B D"],
        condition: Condition,
        style: Float[Tensor, "B N E"] | None = None,
    ) -> Float[Tensor, "B C t h w"]:
        for i, conv in enumerate(self.convs):
            x = conv(x, signal)
            if self.attends:
                x = self.selves[i](x)
                told = self.texts[i](x, condition.text, condition.text_mask)
                x = told if style is None else told + self.styles[i](x, style)
        return x


class ModulatedBlock(nn.Module):
    """A residual block of factorised convolutions whose norm is scaled and shifted by the signal.

    Adaptive normalisation with a zero-initialised gate (arXiv 2212.09748): the identity at first.
    """

    def __init__(self, width: int, signal_width: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(width)
        self.conv1 = FactorisedConv(width, width, causal=False)
        self.norm2 = ChannelNorm(width)
        self.conv2 = FactorisedConv(width, width, causal=False)
        self.modulate = zero_init(nn.Linear(signal_width, 3 * width))

    def forward(
        self, x: Float[Tensor, "B C t h w"], signal: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B C t h w"]:
        scale, shift, gate = self.modulate(signal)[..., None, None, None].chunk(3, dim=1)
        residual = self.conv1(F.silu(self.norm1(x) * (1 + scale) + shift))
        return x + gate * self.conv2(F.silu(self.norm2(residual)))
