"""HSTUNet: the hierarchical space-time U-Net that guesses velocities.

Proposal Hierarchical Video Generation, hierarchical space-time diffusion. Three kinds of level,
each half as fine in space and time as the one before (arXiv 2401.12945): local levels convolve,
regional ones also attend within windows, the global one attends over the whole clip; regional and
global cells read the text, and on the way up the cells of every level may read those of the
coarser one. A paged level attends across the blocks of a long video. One network serves every
level of the pyramid and is told which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hstvg.generator.cue import Cue, CueAttention
from hstvg.generator.layout import Grounding
from hstvg.generator.paged import Kind, PagedLevel, Paging, check_kinds
from hstvg.nn.attention import CoarseAttention, SpaceTimeAttention, TextAttention
from hstvg.nn.conv import FactorisedConv, zero_init
from hstvg.nn.correspondence import CellLikeness, CorrespondenceAttention, Lookup
from hstvg.nn.embed import embed_time
from hstvg.nn.norm import ChannelNorm
from hstvg.nn.resample import Down, Factor, Up
from hstvg.types import Condition

HALVE = Factor(2, 2, 2)


@dataclass(frozen=True, kw_only=True)
class Headed:
    """What a network says of x."""

    velocity: Float[Tensor, "B C t h w"]
    correspondence: Float[Tensor, "B S A cells"] | None = None
    """Log probability of where the cells looked up went, as each head sees it."""
    grounding: Float[Tensor, "B O t cells"] | None = None
    """Log probability of where each object is."""


class HSTUNet(nn.Module):
    """Velocity of x at path time tau, given a condition.

    Args:
        channels: of x; appearance and motion together.
        latent_size: (t, h, w) of the final grid.
        num_levels: pyramid levels it serves.
        text_width: width of the condition's text tokens.
        widths: channels per U-Net level, finest first.
        kinds: "local", "regional", "global" or "paged" per U-Net level.
        depth: blocks per U-Net level, on the way down and again on the way up.
        window: cells per axis of a regional window.
        across: on the way up, cells read those of the coarser level, too.
        checkpointing: recompute each level in the backward pass instead of keeping its activations.
        cues: by name, what it is told beside the text, each with vectors of the coarsest width.
        paging: makes the paged levels; None where there are none.
        correspondence: how many heads of their own learn where things go, which L_attention asks
            them; 0 asks the cells of the trunk, None nothing.

    Raises:
        ValueError: a kind is unknown or one too many or too few, or there are paged levels without
            paging, or the reverse.
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
        across: bool = True,
        checkpointing: bool = False,
        cues: Mapping[str, Cue] | None = None,
        paging: Paging | None = None,
        correspondence: int | None = None,
    ) -> None:
        super().__init__()
        check_kinds(kinds, len(widths), paging)
        width = widths[-1]
        self.checkpointing = checkpointing
        self.cues: Any = nn.ModuleDict(cues or {})  # a mapping of Cue
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.level = nn.Embedding(num_levels, width)
        self.text = nn.Linear(text_width, width)
        self.enter = FactorisedConv(channels, widths[0], causal=False)
        told = {name: cue.token_width for name, cue in self.cues.items() if cue.token_width}

        def level(i: int) -> Level:
            paged = None
            if paging is not None and kinds[i] == "paged":
                paged = paging.level(widths[i], HALVE.t**i, depth, head_dim)
            return Level(
                widths[i],
                width,
                text_width,
                told,
                kind=kinds[i],
                depth=depth,
                window=window,
                head_dim=head_dim,
                reference=latent_size,
                paged=paged,
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
        self._add_reading(pairs, told, latent_size, head_dim, across, correspondence)

    def _add_reading(
        self,
        pairs: Sequence[tuple[int, int]],
        told: Mapping[str, int],
        latent_size: Sequence[int],
        head_dim: int,
        across: bool,
        correspondence: int | None,
    ) -> None:
        """What says nothing at first; all else starts as it would without any of it."""
        width = self.leave.in_channels
        beside = sum(cue.channels for cue in self.cues.values())
        self.correspondence = self.beside = self.grounding = None
        with torch.random.fork_rng(devices=()):
            if correspondence is not None:
                self.correspondence = (
                    CorrespondenceAttention(width, head_dim=head_dim, heads=correspondence)
                    if correspondence
                    else CellLikeness()
                )
            self.across = nn.ModuleList(
                CoarseAttention(fine, coarse, head_dim=head_dim, reference=latent_size)
                for fine, coarse in pairs
                if across
            )
            if beside:
                conv = nn.Conv3d(beside, width, (1, 3, 3), padding=(0, 1, 1), bias=False)
                self.beside = zero_init(conv)
            if "layout" in told:
                self.grounding = Grounding(width, told["layout"], head_dim=head_dim)

    def forward(
        self,
        x: Float[Tensor, "B C t h w"],
        tau: Float[Tensor, "B"],
        level: int,
        condition: Condition,
    ) -> Float[Tensor, "B C t h w"]:
        return self.head(self.trunk(x, tau, level, condition), condition).velocity

    def trunk(
        self,
        x: Float[Tensor, "B C t h w"],
        tau: Float[Tensor, "B"],
        level: int,
        condition: Condition,
    ) -> Float[Tensor, "B D t h w"]:
        """What appearance and motion are both read from."""
        signal = self._signal(tau, level, condition)
        tokens = {name: cue.tokens(signal, condition) for name, cue in self.cues.items()}
        known = [cue.beside(x, condition) for cue in self.cues.values()]
        dtype = self.enter.space.weight.dtype
        x = self.enter(x.to(dtype))
        if self.beside is not None:
            x = x + self.beside(torch.cat(known, dim=1).to(dtype))
        skips = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = self._through(block, x, signal, condition, tokens)
            skips.append(x)
            x = shrink(x)
        x = self._through(self.middle, x, signal, condition, tokens)
        for i in reversed(range(len(skips))):
            coarse = x
            x = self.join[i](torch.cat([self.grow[i](coarse), skips[i]], dim=1))
            if self.across:
                x = self._through(self.across[i], x, coarse)
            x = self._through(self.up[i], x, signal, condition, tokens)
        return x

    def _through(
        self, block: nn.Module, x: Float[Tensor, "B D t h w"], *told: object
    ) -> Float[Tensor, "B D t h w"]:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, *told, use_reentrant=False)
        return block(x, *told)

    def head(
        self, x: Float[Tensor, "B D t h w"], condition: Condition, lookup: Lookup | None = None
    ) -> Headed:
        """What is read from the trunk."""
        rows = boxes = None
        if self.correspondence is not None:
            x, rows = self.correspondence(x, lookup)
        if self.grounding is not None:
            x, boxes = self.grounding(x, self.cues["layout"].tokens(x.flatten(1), condition))
        return Headed(
            velocity=self.leave(F.silu(self.norm(x))), correspondence=rows, grounding=boxes
        )

    def _signal(
        self, tau: Float[Tensor, "B"], level: int, condition: Condition
    ) -> Float[Tensor, "B D"]:
        """What every block is told: the time, the pyramid level and the gist of the text."""
        time = self.time(embed_time(tau, self.level.embedding_dim).to(condition.text.dtype))
        index = torch.full((len(tau),), level, device=tau.device)
        mask = condition.text_mask[..., None].to(condition.text.dtype)
        gist = self.text((condition.text * mask).sum(1) / mask.sum(1))
        signal = time + self.level(index) + gist
        for cue in self.cues.values():
            added = cue.signal(signal, condition)
            signal = signal if added is None else signal + added
        return F.silu(signal)


class Level(nn.Module):
    """The blocks of one U-Net level at one resolution.

    Args:
        told: by name, the widths of the tokens of the cues that have some.
        paged: what a paged level attends with, beside its cues.
    """

    def __init__(
        self,
        width: int,
        signal_width: int,
        text_width: int,
        told: Mapping[str, int],
        *,
        kind: Kind,
        depth: int,
        window: int,
        head_dim: int,
        reference: Sequence[int],
        paged: PagedLevel | None = None,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ModulatedBlock(width, signal_width) for _ in range(depth))
        self.attends = kind != "local"
        self.paged = paged
        count = depth if self.attends else 0
        own = 0 if paged else count
        reach = window if kind == "regional" else None
        self.selves = nn.ModuleList(
            SpaceTimeAttention(width, head_dim=head_dim, window=reach, reference=reference)
            for _ in range(own)
        )
        self.texts = nn.ModuleList(
            TextAttention(width, text_width, head_dim=head_dim) for _ in range(own)
        )
        with torch.random.fork_rng(devices=()):
            self.cues: Any = nn.ModuleDict(
                {
                    name: nn.ModuleList(
                        CueAttention(width, token_width, head_dim=head_dim) for _ in range(count)
                    )
                    for name, token_width in told.items()
                }
            )

    def forward(
        self,
        x: Float[Tensor, "B C t h w"],
        signal: Float[Tensor, "B D"],
        condition: Condition,
        tokens: Mapping[str, Float[Tensor, "B _N _E"] | None],
    ) -> Float[Tensor, "B C t h w"]:
        view = None if self.paged is None else self.paged.view(x, condition)
        for i, conv in enumerate(self.convs):
            x = conv(x, signal)
            if self.attends:
                if self.paged is None:
                    x = self.selves[i](x)
                    told = self.texts[i](x, condition.text, condition.text_mask)
                else:
                    told = self.paged(x, i, condition, view)
                for name, attentions in self.cues.items():
                    told = told + attentions[i](x, tokens[name])
                x = told
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
