"""JointGenerator: the transformer writes the scales up to kappa, the denoiser goes on from there.

p(z | c) = prod_{k <= kappa} P_theta(r_k | r_<k, c) p_phi(z | z_hat_kappa, c): kappa = K is the
proposal VideoAR alone, kappa = 0 the proposal Hierarchical Video Generation alone. One training
serves every kappa, since the denoiser is trained on prefixes of every length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.generator.context import begun
from hstvg.generator.examples import GeneratorExample
from hstvg.generator.generator import Remember, Sampling
from hstvg.generator.hierarchical import HierarchicalGenerator
from hstvg.generator.history import History
from hstvg.generator.layout import Layouts
from hstvg.generator.next_scale import NextScaleExample, NextScaleGenerator
from hstvg.generator.prefixes import Prefixes
from hstvg.generator.refining import Refining
from hstvg.generator.style import Styling
from hstvg.generator.told import read_prompts
from hstvg.generator.tracks import Tracks
from hstvg.paths.draws import Draws
from hstvg.paths.motion_noise import MotionNoise
from hstvg.scales import Scale
from hstvg.scene.text import TextEncoder
from hstvg.types import (
    Codec,
    Condition,
    Hints,
    LatentBatch,
    LatentPyramid,
    Prediction,
    Prefix,
)


@dataclass(frozen=True, kw_only=True)
class JointExample:
    """A batch as both parts train on it."""

    transformer: NextScaleExample
    denoiser: GeneratorExample


class JointGenerator(nn.Module):
    """Both generators on one text encoder.

    Args:
        codec: of the tokenizer whose latents are made, in one segment.
        kappa: scales that the transformer writes where a sample asks for no other number; 0 to K.
        text_dropout: share of clips trained without their caption, the same for both parts.
        transformer: arguments of NextScaleGenerator, but for those above.
        denoiser: arguments of HierarchicalGenerator, but for those above and below.
        prefixes: what the denoiser is trained to go on from.
        noise, refiner, tracks, style, layout, history: as of HierarchicalGenerator; the
            transformer knows of no history, so kappa is 0 where there is some.
        context_frames, context_share, context_noise: as of both, each of which draws for itself.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        text: TextEncoder,
        transformer: Mapping[str, Any],
        denoiser: Mapping[str, Any],
        kappa: int,
        text_dropout: float = 0.1,
        prefixes: Prefixes | None = None,
        noise: MotionNoise | None = None,
        refiner: Refining | None = None,
        tracks: Tracks | None = None,
        style: Styling | None = None,
        layout: Layouts | None = None,
        history: History | None = None,
        context_frames: int = 0,
        context_share: float = 0.25,
        context_noise: float = 0.1,
    ) -> None:
        super().__init__()
        self.text = text
        self.context_frames = context_frames
        shared = {
            "codec": codec,
            "text": text,
            "text_dropout": text_dropout,
            "context_frames": context_frames,
            "context_share": context_share,
            "context_noise": context_noise,
        }
        extras = {
            "noise": noise,
            "refiner": refiner,
            "tracks": tracks,
            "style": style,
            "layout": layout,
            "history": history,
        }
        self.transformer = NextScaleGenerator(**shared, **transformer)
        self.prefixes = prefixes or Prefixes()
        self.denoiser = HierarchicalGenerator(
            **shared, **denoiser, **extras, prefixes=self.prefixes
        )
        for part in (self.transformer, self.denoiser):
            # They use it, but only this module has it: its weights are trained and saved once.
            del part.text
            part.__dict__["text"] = text
        whole = codec.schedule.num_levels
        self.kappas = (*self.denoiser.continues, whole)
        if kappa not in self.kappas:
            raise ValueError(f"kappa={kappa}: choose from {', '.join(map(str, self.kappas))}")
        self.kappa = kappa
        self.takes_style, self.takes_layout = style is not None, layout is not None

    @property
    def latent_size(self) -> Scale:
        return self.transformer.latent_size

    @property
    def remember(self) -> Remember | None:
        return self.denoiser.remember

    @torch.no_grad()
    def example(
        self, batch: LatentBatch, codec: Codec, draws: Draws, known: Condition | None = None
    ) -> JointExample:
        """Both examples; what the transformer is told of a caption, the denoiser is told."""
        own, block = draws.within("denoiser"), batch
        history = self.denoiser.examples.history
        if history is not None:  # the block that the denoiser draws
            block, _ = history.cut(batch, self.latent_size.t, own)
        return JointExample(
            transformer=self.transformer.example(block, codec, draws, known),
            denoiser=self.denoiser.example(batch, codec, own, known),
        )

    def forward(self, example: JointExample) -> Prediction:
        """Codes of the one, velocities and all else of the other."""
        condition = example.transformer.told.condition(self.text)
        written = self.transformer.predict(example.transformer, condition)
        return replace(
            self.denoiser.predict(example.denoiser, condition),
            codes=written.codes,
            residuals=written.residuals,
            statistics=written.statistics,
        )

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
        """The scales as they are written, then the levels as they are climbed; appearance alone.

        Args:
            given: up to `context_frames` latent frames, with which the clips begin.

        Raises:
            ValueError: there are more of them, or kappa is none that the denoiser can go on from.
        """
        kappa = self.kappa if settings.kappa is None else settings.kappa
        if kappa not in self.kappas:
            known = ", ".join(map(str, self.kappas))
            raise ValueError(f"kappa={kappa}: this generator knows {known}")
        hints = hints or Hints()
        if (hints.style or hints.layout) and kappa == codec.schedule.num_levels:
            raise ValueError(f"kappa={kappa} leaves nothing to the denoiser, which hints are for")
        if (
            settings.motion_noise or settings.motion_guidance
        ) and kappa == codec.schedule.num_levels:
            raise ValueError(
                f"kappa={kappa} leaves nothing to the denoiser, which motion_noise and "
                "motion_guidance are for"
            )
        if hints.past is not None and kappa:
            raise ValueError(f"kappa={kappa}: the transformer remembers no blocks; give kappa=0")
        condition, nothing = read_prompts(captions, self.text, draws.device, hints)
        states = []
        if kappa:
            states = self.transformer.write(
                condition, nothing, codec, draws, settings, given, rungs=kappa
            )
        if kappa == codec.schedule.num_levels:
            return LatentPyramid(levels=(*states[:-1], begun(states[-1], given)))
        prefix = None
        if states:
            rows = torch.ones(len(captions), device=draws.device)
            # What is written is not what the clip's own codes would be, nor to be trusted as such.
            wrong = rows * self.prefixes.corruption / 2
            prefix = Prefix(state=states[-1], kappa=rows.long() * kappa, corruption=wrong)
        climbed = self.denoiser.climb(
            condition, nothing, draws, settings, prefix, given, hints.particles
        )
        appearance = [level[:, : self.denoiser.latent_channels] for level in climbed.levels]
        return replace(climbed, levels=(*states, *appearance))
