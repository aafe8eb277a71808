"""Examples: a batch as a denoiser trains on it, drawn without gradient."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hstvg.generator.context import Context
from hstvg.generator.history import Earlier, History
from hstvg.generator.layout import Layouts, ToldLayout
from hstvg.generator.motion import MOTION_CHANNELS, fill_unknown, read_motion
from hstvg.generator.prefixes import (
    Prefixes,
    coarse_of,
    handed_over,
    longest,
    write,
)
from hstvg.generator.refining import FlawedClip, Refining
from hstvg.generator.style import Styling
from hstvg.generator.told import Told, tell
from hstvg.generator.tracks import Found, Tracks, draw_lookup, follow
from hstvg.nn.correspondence import Lookup
from hstvg.paths.draws import Draws
from hstvg.paths.motion_noise import MotionNoise
from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.scales import Ladder, Scale
from hstvg.scene.text import TextEncoder
from hstvg.types import (
    Codec,
    Condition,
    Given,
    LatentBatch,
    LatentPyramid,
    PathSample,
    Prefix,
    StyleReference,
)


@dataclass(frozen=True, kw_only=True)
class GeneratorExample:
    """A batch as the generator trains on it: points on the path of every level, and the text."""

    paths: tuple[PathSample, ...]
    """Per level, coarse to fine; `draws[level]` consecutive rows belong to one clip."""
    confidence: tuple[Float[Tensor, "B 1 _t _h _w"], ...]
    """Per level: trust in the motion channels."""
    told: Told
    prefixes: tuple[Prefix | None, ...]
    """Per level, the scales of each clip that are written already; None where none ever are."""
    tracks: tuple[tuple[Lookup, Found] | None, ...]
    """Per level, cells of each clip and where they are found again; None where nothing is asked."""
    given: Given | None = None
    """What each clip begins with; None where none ever is given a frame."""
    alpha: Float[Tensor, "B"] | None = None
    """Per clip: how much of its noise moves with it; None where none does."""
    unmoved: Bool[Tensor, "B"] | None = None
    """Clips whose motion channels are hidden; None where those of none are."""
    style: StyleReference | None = None
    layout: ToldLayout | None = None
    earlier: Earlier | None = None
    """The blocks before; None where none ever are told."""
    flawed: FlawedClip | None = None
    """What the refiner trains on, if there is one."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """How they are drawn; None where a thing is not trained.

    Args:
        draws: points per clip and step on each level's path, coarse to fine.
        text_dropout: share of clips without their caption.
        motion_dropout: share of clips whose motion is hidden from the network.
        written: the codec's scales, where there are prefixes.
    """

    path: PyramidFlow
    latent_channels: int
    draws: tuple[int, ...]
    text_dropout: float
    motion_dropout: float
    context: Context
    noise: MotionNoise | None
    refining: Refining | None
    prefixes: Prefixes | None
    written: Ladder | None
    tracks: Tracks | None
    styling: Styling | None
    layouts: Layouts | None
    history: History | None

    def of(
        self,
        batch: LatentBatch,
        codec: Codec,
        draws: Draws,
        text: TextEncoder,
        nothing: Float[Tensor, "L D"] | None,
        known: Condition | None = None,
    ) -> GeneratorExample:
        """Times, noises and dropped captions, and the clips on their paths.

        Args:
            codec: writes the scales to go on from, where there are any, and wrong ones to mend.
            nothing: the empty caption, where the text encoder is frozen.
            known: the captions as it encodes them, where that is done already.

        Raises:
            ValueError: the clips came without something that is trained on, or are no whole blocks
                where history is told.
        """
        earlier = None
        if self.history is not None:
            batch, earlier = self.history.cut(batch, codec.schedule.size.t, draws)
        z, motion, confidence = batch.latent, batch.motion, batch.motion_confidence
        if motion is None or confidence is None:
            raise ValueError("this generator denoises motion; set data.motion=true")
        scales = self.path.scales(z.shape[2:])  # clips of another size are trained on, too
        motion = fill_unknown(motion, confidence, scales[0])
        pyramid = self.path.pyramid(torch.cat([z, motion], dim=1), scales)
        trust = self.path.pyramid(confidence, scales)
        prefixes = self._prefixes(z, codec, draws, scales)
        levels, share = range(len(scales)), z.shape[2] / codec.schedule.size.t
        dropout = self.text_dropout
        told = tell(batch.captions, known, text, nothing, draws, dropout=dropout, device=z.device)
        alpha = self.noise.draw_alpha(draws) if self.noise else None
        flawed = None
        if self.refining is not None:
            flawed = self.refining.example(batch, codec, draws.within("refiner"))
        return GeneratorExample(
            paths=tuple(
                self._paths(pyramid, level, draws, prefixes[level], scales) for level in levels
            ),
            confidence=trust.levels,
            told=told,
            prefixes=prefixes,
            tracks=tuple(self._track(pyramid, trust, level, draws, share) for level in levels),
            given=self.context.draw(z, draws),
            alpha=alpha,
            unmoved=self._unmoved(draws),
            style=self.styling.draw(batch, draws) if self.styling else None,
            layout=self.layouts.draw(batch.layout, text, draws) if self.layouts else None,
            earlier=earlier,
            flawed=flawed,
        )

    def _unmoved(self, draws: Draws) -> Bool[Tensor, "B"] | None:
        if not self.motion_dropout:
            return None
        return draws.uniform("motion_dropout") < self.motion_dropout

    def _prefixes(
        self, z: Float[Tensor, "B C t h w"], codec: Codec, draws: Draws, levels: Ladder
    ) -> tuple[Prefix | None, ...]:
        """Per level the scales that are written: at most those that are coarser than it."""
        if self.prefixes is None:
            return (None,) * len(levels)
        written = write(z, codec, draws.within("prefix"), self.prefixes)
        scales = codec.schedule.resized(z.shape[2:])[0]
        return tuple(written.up_to(longest(scales, level)) for level in levels)

    def _track(
        self, pyramid: LatentPyramid, trust: LatentPyramid, level: int, draws: Draws, share: float
    ) -> tuple[Lookup, Found] | None:
        """Cells to be found again and where they went, the same for all draws of a level.

        Args:
            share: the length of the clips as one of the tokenizer's.
        """
        size = Scale(*pyramid.levels[level].shape[2:])
        if self.tracks is None or size.t == 1:
            return None
        own = draws.within(f"tracks/{level}")
        lookup = draw_lookup(own, size, self.tracks.queries)
        motion = read_motion(pyramid.finest[:, self.latent_channels :])
        seconds = self.tracks.seconds(motion.shape[2], share)
        found = follow(motion, trust.finest, lookup, size, seconds, own, self.tracks.still)
        return lookup, found

    def _paths(
        self,
        pyramid: LatentPyramid,
        level: int,
        draws: Draws,
        prefix: Prefix | None,
        levels: Ladder,
    ) -> PathSample:
        count = self.draws[level]
        if level and prefix is not None:
            pyramid = self._handed_over(pyramid, level, prefix, levels)
        noise = self._noise(pyramid, level, draws).flatten(0, 1)
        # Stratified over the draws of a clip: one uniform offset, evenly spread.
        offset = draws.uniform(f"tau/{level}", 1)
        uniform = (offset + torch.arange(count, device=offset.device) / count) % 1
        repeated = LatentPyramid(
            levels=tuple(values.repeat_interleave(count, dim=0) for values in pyramid.levels)
        )
        return self.path.at(repeated, level, noise, self.path.draw_tau(uniform.flatten(), level))

    def _handed_over(
        self, pyramid: LatentPyramid, level: int, prefix: Prefix, levels: Ladder
    ) -> LatentPyramid:
        """The pyramid with what a prefix says of the level before, where one ends there."""
        assert self.written is not None
        before = levels[level - 1]
        handed = handed_over(prefix, self.written.resized(levels.last), before)
        coarse = coarse_of(prefix, before, MOTION_CHANNELS).to(pyramid.levels[level - 1])
        chosen = torch.where(handed.view(-1, 1, 1, 1, 1), coarse, pyramid.levels[level - 1])
        parts = list(pyramid.levels)
        parts[level - 1] = chosen
        return LatentPyramid(levels=tuple(parts))

    def _noise(
        self, pyramid: LatentPyramid, level: int, draws: Draws
    ) -> Float[Tensor, "B n C t h w"]:
        """Of the n draws of each clip; where it moves, by the motion of the clip itself."""
        shape = pyramid.levels[level].shape[1:]
        white = draws.normal(f"noise/{level}", self.draws[level], *shape)
        if self.noise is None:
            return white
        coloured = self.noise.colour(
            white.flatten(1, 2),
            Scale(*pyramid.levels[0].shape[2:]),
            read_motion(pyramid.finest[:, self.latent_channels :]),
            self.noise.draw_alpha(draws),
            draws.within(f"noise/{level}"),
        )
        return coloured.noise.view_as(white)
