"""HierarchicalGenerator: text encoder, path and U-Net put together.

p(z | c) by pyramidal flow matching over appearance and motion channels, denoised jointly so that
one trunk learns both (proposal, motion modelling; reading of arXiv 2502.02492).
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.generator.context import Context, GivenCue, begun
from hstvg.generator.cue import Cue, MovingNoiseCue
from hstvg.generator.examples import Examples, GeneratorExample
from hstvg.generator.generator import Remember, Sampling
from hstvg.generator.guidance import guided
from hstvg.generator.history import History, HistoryCue
from hstvg.generator.hst_unet import HSTUNet
from hstvg.generator.layout import LayoutCue, Layouts, pair_boxes
from hstvg.generator.motion import MOTION_CHANNELS, read_motion
from hstvg.generator.neighbours import Before
from hstvg.generator.paged import Paging, recall, remember, repeated
from hstvg.generator.prefixes import (
    PrefixCue,
    Prefixes,
    coarse_of,
    first_level,
    ladder_of,
)
from hstvg.generator.refining import Refining, with_refined
from hstvg.generator.style import StyleAdapter, Styling, pair_looks
from hstvg.generator.told import encode_nothing, read_prompts
from hstvg.generator.tracks import (
    Tracks,
    pair_rows,
)
from hstvg.nn.haar_bank import num_statistics
from hstvg.paths.draws import Draws
from hstvg.paths.motion_noise import MotionNoise, MovingNoise
from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.scales import Ladder, Scale
from hstvg.scene.text import TextEncoder
from hstvg.types import (
    Codec,
    Condition,
    Hints,
    LatentBatch,
    LatentPyramid,
    Pair,
    Particles,
    Prediction,
    Prefix,
)

Record = TypeVar("Record", bound=Any)


class HierarchicalGenerator(nn.Module):
    """The generator of stage 2.

    Args:
        codec: of the tokenizer whose latents are made; read for their size alone.
        draws: points per clip and step on each level's path, coarse to fine; coarse levels are
            cheap and decide the motion, so they may get more.
        text_dropout: share of clips trained without their caption, for classifier-free guidance.
        motion_dropout: share of clips whose motion the network does not see, for inner guidance.
        widths: as of HSTUNet.
        noise: moves with the clips, by the motion that is denoised along; None leaves it white.
        refiner: how the frames of a sample are made to agree, and how that is learnt; None leaves
            them as they are.
        prefixes: coarse scales to go on from, which something else writes; None goes on from none.
        tracks: what a correspondence head is asked for; None is no such head.
        style: how clips are made to look as others do; None tells them no style but in words.
        layout: how they are told where objects are; None tells them in words alone.
        history: what a block knows of those before it, where kinds has a paged level.
        context_frames: latent frames that a clip may be given to begin with.
        context_share: share of clips trained with some of them given.
        context_noise: largest deviation of the noise on those.
        network: further sizes of the HSTUNet.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        path: PyramidFlow,
        text: TextEncoder,
        draws: Sequence[int] = (2, 1),
        text_dropout: float = 0.1,
        motion_dropout: float = 0.0,
        widths: Sequence[int] = (64, 128),
        noise: MotionNoise | None = None,
        refiner: Refining | None = None,
        prefixes: Prefixes | None = None,
        tracks: Tracks | None = None,
        style: Styling | None = None,
        layout: Layouts | None = None,
        history: History | None = None,
        context_frames: int = 0,
        context_share: float = 0.25,
        context_noise: float = 0.1,
        **network: Any,
    ) -> None:
        super().__init__()
        self.latent_channels = codec.channels
        self.levels = path.scales(codec.schedule.size)
        check_levels(self.levels, draws, len(widths) - 1)
        self.path = path
        self.text = text
        self.examples = Examples(
            path=path,
            latent_channels=codec.channels,
            draws=tuple(draws),
            text_dropout=text_dropout,
            motion_dropout=motion_dropout,
            context=Context(frames=context_frames, share=context_share, noise=context_noise),
            noise=noise,
            refining=refiner,
            prefixes=prefixes,
            written=ladder_of(codec) if prefixes else None,
            tracks=tracks,
            styling=style,
            layouts=layout,
            history=history,
        )
        self.examples.context.check(codec.schedule.size.t)
        self.no_text: Tensor
        self.register_buffer("no_text", encode_nothing(text), persistent=False)
        self.unet = HSTUNet(
            channels=codec.channels + MOTION_CHANNELS,
            latent_size=codec.schedule.size,
            num_levels=path.num_levels,
            text_width=text.width,
            widths=widths,
            cues=self._cues(codec, widths[-1]),
            paging=None if history is None else Paging(history, codec, text.width),
            correspondence=None if tracks is None else tracks.heads,
            **network,
        )
        self.refiner = None if refiner is None else refiner.refiner(codec)

    def _cues(self, codec: Codec, width: int) -> dict[str, Cue]:
        """What the U-Net is told beside the text, in vectors of a width."""
        channels, schedule = codec.channels, codec.schedule
        cues: dict[str, Cue] = {}
        with torch.random.fork_rng(devices=()):  # all else starts as it would without them
            if self.examples.noise:
                cues["noise"] = MovingNoiseCue(width)
            if self.examples.prefixes:
                cues["prefix"] = PrefixCue(channels, schedule.num_levels, width)
            if self.context_frames:
                cues["given"] = GivenCue(channels, width)
            if self.examples.styling:
                seen = num_statistics(channels, *schedule.size[1:])
                cues["style"] = StyleAdapter(self.examples.styling, seen, width)
            if self.examples.layouts:
                cues["layout"] = LayoutCue(self.examples.layouts, self.text.width)
            if self.examples.history:
                cues["history"] = HistoryCue(width)
        return cues

    @torch.no_grad()
    def example(
        self,
        batch: LatentBatch,
        codec: Codec,
        draws: Draws,
        known: Condition | None = None,
    ) -> GeneratorExample:
        """As `Examples.of`."""
        return self.examples.of(batch, codec, draws, self.text, self.no_text, known)

    def forward(self, example: GeneratorExample) -> Prediction:
        return self.predict(example, example.told.condition(self.text))

    def predict(self, example: GeneratorExample, condition: Condition) -> Prediction:
        """Guessed beside true velocities, per level; also of given frames, which coarse cells share
        with others, and which a sample has to run through like all others."""
        condition = replace(
            condition,
            alpha=example.alpha,
            style=example.style,
            given=example.given,
            objects=example.layout and example.layout.objects(self.text),
        )
        history = None if example.earlier is None else recall(self.unet, example.earlier)
        velocity, motion, rows, boxes, trunk = [], [], [], [], []
        for level, path in enumerate(example.paths):
            count, C = self.examples.draws[level], self.latent_channels
            told = repeat(replace(condition, prefix=example.prefixes[level]), count)
            told = replace(told, history=history and repeated(history, count))
            track = example.tracks[level]
            x, trust = path.x, example.confidence[level][:, None]
            if example.unmoved is not None:
                hidden = example.unmoved.view(-1, 1, 1, 1, 1)
                x = torch.where(hidden.repeat_interleave(count, dim=0), self._unmove(x), x)
                trust = trust * ~hidden[:, None]  # what is not seen is not asked
            trunk.append(self.unet.trunk(x, path.tau, level, told))
            lookup = None if track is None else repeat(track[0], count)
            said = self.unet.head(trunk[-1], told, lookup)
            guess, target = (v.unflatten(0, (-1, count)) for v in (said.velocity, path.velocity))
            velocity.append(Pair(guess=guess[:, :, :C], target=target[:, :, :C]))
            motion.append(Pair(guess=guess[:, :, C:], target=target[:, :, C:], weight=trust))
            if track is not None and said.correspondence is not None:
                rows.append(pair_rows(said.correspondence, track[1], path.tau, count))
            if condition.objects is not None and said.grounding is not None:
                layout, size = condition.objects.layout, path.x.shape[2:]
                boxes.append(pair_boxes(said.grounding, layout, path.tau, size))
        prediction = Prediction(
            velocity=tuple(velocity),
            motion=tuple(motion),
            attention=tuple(rows),
            grounding=tuple(boxes),
            style=self._pair_looks(example, velocity[-1]),
            trunk=tuple(trunk),
        )
        if self.refiner is None or example.flawed is None:
            return prediction
        return with_refined(prediction, self.refiner, example.flawed)

    def _pair_looks(self, example: GeneratorExample, velocity: Pair) -> Pair | None:
        """Of the finest level."""
        styling = self.examples.styling
        if styling is None:
            return None
        return pair_looks(self.path, example.paths[-1], velocity.guess, styling.late)

    @torch.no_grad()
    def sample(
        self,
        captions: Sequence[str],
        codec: Codec,
        draws: Draws,
        settings: Sampling,
        given: Float[Tensor, "B C r h w"] | None = None,
        hints: Hints | None = None,
    ) -> LatentPyramid:
        """Latents for captions, by guided steps; their motion channels come last.

        Args:
            given: up to `context_frames` latent frames, with which the clips begin.

        Raises:
            ValueError: there are more of them, or the noise is to move but never did in training.
        """
        if settings.kappa not in (None, *self.kappas):
            raise ValueError(f"kappa={settings.kappa}: nothing here writes scales; train joint")
        condition, nothing = read_prompts(captions, self.text, draws.device, hints)
        after = hints and hints.particles
        return self.climb(condition, nothing, draws, settings, given=given, after=after)

    @torch.no_grad()
    def climb(
        self,
        condition: Condition,
        nothing: Condition,
        draws: Draws,
        settings: Sampling,
        prefix: Prefix | None = None,
        given: Float[Tensor, "B C r h w"] | None = None,
        after: Particles | None = None,
    ) -> LatentPyramid:
        """Latents from noise, or from the scales that are written already.

        Args:
            prefix: of the same kappa for all clips.
            given: as of `sample`.
            after: the moving noise of the block before; None begins a clip.

        Raises:
            ValueError: the noise is to move but never did in training, motion is to guide a level
                that is left out, or too much is given.
        """
        first = self._first(prefix)
        self._refuse(condition, settings, first)
        noises = [
            draws.normal(f"sample/{level}", self.latent_channels + MOTION_CHANNELS, *scale)
            for level, scale in enumerate(self.levels)
        ]
        particles = None
        if settings.motion_noise:
            moving = self._moving(
                noises[first], condition, nothing, draws, settings, prefix, given, after
            )
            noises[first], particles = moving.noise, moving.particles
            alpha = noises[first].new_full((len(condition.text),), settings.motion_noise)
            condition, nothing = replace(condition, alpha=alpha), replace(nothing, alpha=alpha)
        told = {"prefix": prefix, "given": self.examples.context.told(given, self.latent_size)}
        condition, nothing = replace(condition, **told), replace(nothing, **told)
        sampled = self.path.sample(
            guided(self.unet, condition, nothing, settings, self._unmove),
            self.levels,
            noises,
            steps=settings.steps,
            solver=settings.solver,
            first=first,
            start=self._start(prefix, first, noises[first]),
        )
        *coarser, finest = sampled.levels
        finest = self._finish(begun(finest, given), given)
        return LatentPyramid(levels=(*coarser, finest), particles=particles)

    def _moving(
        self,
        white: Float[Tensor, "B C _t _h _w"],
        condition: Condition,
        nothing: Condition,
        draws: Draws,
        settings: Sampling,
        prefix: Prefix | None,
        given: Float[Tensor, "B Cz r h w"] | None,
        after: Particles | None,
    ) -> MovingNoise:
        """The noise of the level that is begun with; levels after it take it up, for what a jump
        adds is nothing that the coarsest grid sees.

        A caption does not say where things are. The motion of a first sample does, and has the
        distribution of the motion that moved the noise in training. It is made of other draws: no
        noise of training has made the motion that moves it.
        """
        assert self.examples.noise is not None, "_refuse lets nobody else by"
        still, other = replace(settings, motion_noise=0.0), draws.within("still")
        known = self.climb(condition, nothing, other, still, prefix, given).finest
        motion = read_motion(known[:, self.latent_channels :])
        return self.examples.noise.colour(
            white,
            self.levels[0],
            motion,
            motion.new_full((len(motion),), settings.motion_noise),
            draws.within("sample"),
            after,
            overlap=0.0 if self.remember else self.context_frames / self.latent_size.t,
        )

    def _unmove(self, x: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        """x with its motion hidden."""
        return torch.cat([x[:, : self.latent_channels], 0 * x[:, self.latent_channels :]], dim=1)

    def _finish(
        self, latent: Float[Tensor, "B C t h w"], given: Float[Tensor, "B Cz r h w"] | None
    ) -> Float[Tensor, "B C t h w"]:
        """A sampled block, refined; given frames stay, as the end of the block before."""
        if given is None:
            return self.refine(latent)
        r = given.shape[2]
        rest = self.refine(latent[:, :, r:], before=latent[:, :, r - 1 : r])
        return torch.cat([latent[:, :, :r], rest], dim=2)

    def _refuse(self, condition: Condition, settings: Sampling, first: int) -> None:
        """Raises ValueError where a sample from level `first` on is asked for what it cannot do."""
        if condition.style is not None and not self.takes_style:
            raise ValueError("a style reference needs a generator trained with +term=style")
        if condition.objects is not None and not self.takes_layout:
            raise ValueError("a scene needs a generator trained with +layout=boxes")
        if settings.motion_noise and self.examples.noise is None:
            raise ValueError("motion_noise=... needs a generator trained with +noise=motion")
        if settings.motion_guidance and not self.examples.motion_dropout:
            raise ValueError(
                "motion_guidance=... needs a generator trained with generator.motion_dropout=0.2"
            )
        if settings.motion_guidance and first:
            raise ValueError(
                "motion_guidance=... acts on the first level, which so many written scales leave "
                "out; give a smaller kappa"
            )

    def _first(self, prefix: Prefix | None) -> int:
        """The level to begin with."""
        if prefix is None or self.examples.written is None:
            return 0
        level = first_level(self.examples.written, self.levels, int(prefix.kappa[0]))
        assert level is not None, "kappas names those that a level begins with"
        return level

    def _start(
        self, prefix: Prefix | None, level: int, noise: Float[Tensor, "B C t h w"]
    ) -> Float[Tensor, "B C t h w"] | None:
        """Of a level that begins with scales that are written; None where nothing is."""
        if prefix is None or level == 0:
            return None
        coarse = coarse_of(prefix, self.levels[level - 1], MOTION_CHANNELS)
        return self.path.handoff(coarse, level, self.levels[level], noise)

    @property
    def remember(self) -> Remember | None:
        return None if self.examples.history is None else partial(remember, self.unet)

    @property
    def takes_layout(self) -> bool:
        return self.examples.layouts is not None

    @property
    def takes_style(self) -> bool:
        return self.examples.styling is not None

    @property
    def kappas(self) -> tuple[int, ...]:
        """The lengths of prefix that may be gone on from; a prefix is for others to write."""
        return (0,)

    @property
    def continues(self) -> tuple[int, ...]:
        """The lengths of prefix that `climb` may be given."""
        if self.examples.written is None:
            return (0,)
        lengths = range(len(self.examples.written))
        return tuple(
            k for k in lengths if first_level(self.examples.written, self.levels, k) is not None
        )

    def refine(
        self,
        latent: Float[Tensor, "B C t h w"],
        before: Float[Tensor, "B C 1 h w"] | None = None,
    ) -> Float[Tensor, "B C t h w"]:
        """A sampled block whose frames agree, with one another and with the block before.

        Args:
            latent: motion channels last.
            before: last frame of that block, motion channels last; None where there is none.
        """
        if self.refiner is None:
            return latent
        sizes = [self.latent_channels, MOTION_CHANNELS]
        z, motion = latent.split(sizes, dim=1)
        last = None
        if before is not None:
            frame, its_motion = before.split(sizes, dim=1)
            known = torch.ones(len(before), dtype=torch.bool, device=before.device)
            last = Before(latent=frame, motion=its_motion, known=known)
        return torch.cat([self.refiner(z, motion, last)[-1], motion], dim=1)

    @property
    def latent_size(self) -> Scale:
        return self.levels.last

    @property
    def context_frames(self) -> int:
        return self.examples.context.frames


def check_levels(levels: Ladder, draws: Sequence[int], halvings: int) -> None:
    """Raises ValueError where a level has no count of draws, or a U-Net cannot make the coarsest as
    small as it has to."""
    if len(draws) != len(levels):
        raise ValueError(f"draws {list(draws)} must name one count per level of the path")
    if any(size % 2**halvings for size in levels[0]):
        raise ValueError(
            f"the coarsest pyramid level {levels[0]} cannot be halved {halvings} times; "
            "use fewer widths, fewer path.boundaries or a larger clip"
        )


def repeat(condition: Record, count: int) -> Record:
    """Every clip's condition `count` times in a row; also of a part of one."""

    def again(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.repeat_interleave(count, dim=0)
        if isinstance(part, tuple):
            return tuple(row for row in part for _ in range(count))
        return part if part is None else repeat(part, count)

    parts = {field.name: again(getattr(condition, field.name)) for field in fields(condition)}
    return replace(condition, **parts)
