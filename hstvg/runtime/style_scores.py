"""Styles of an evaluation: what a reference clip does to the style of a sample, and to its content.

Every held-out prompt is asked for without the words of its style, once with a reference and once
without, from the same noise. What both show is read in the style that is seen in them, so that a
missed style is not taken for a missed shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from hstvg.data.sample import Window
from hstvg.generate.bundle import VideoModel
from hstvg.generate.workflow import write_clips
from hstvg.generator.generator import Sampling
from hstvg.metrics.control import ControlAccuracy
from hstvg.metrics.style import StyleAccuracy, find_style
from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.index import DatasetIndex
from hstvg.runtime.reader import DAMAGE, Reader, VideoOpener, references
from hstvg.scene.grammar import STYLES, read_caption, style_of, without_style, write_caption
from hstvg.scene.syntax import Style

MOST_REFERENCES = 4096
"""Held-out clips of a split, the first ones, among which references are looked for."""

Clip = UInt8[np.ndarray, "T H W 3"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Style, and the content of a caption in whatever style is seen, of some clips."""

    style: StyleAccuracy = field(default_factory=StyleAccuracy.empty)
    control: ControlAccuracy = field(default_factory=ControlAccuracy.empty)

    @classmethod
    def of(cls, clip: Clip, caption: str, style: Style, fps: float) -> "Look":
        """Of one clip that is to show a caption of the shape world, in a style."""
        seen = find_style(clip)
        said = replace(read_caption(caption), style=seen or "plain")
        return cls(
            style=StyleAccuracy(right=int(seen == style), num_clips=1),
            control=ControlAccuracy.empty().update(
                generated=[clip], captions=[write_caption(said)], fps=fps
            ),
        )

    def merge(self, other: "Look") -> "Look":
        return Look(style=self.style.merge(other.style), control=self.control.merge(other.control))

    def scores(self) -> dict[str, Any]:
        found = {**self.style.compute(), **self.control.compute()}
        return {name: asdict(estimate) for name, estimate in found.items()}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A clip and the style that it shows."""

    style: Style
    frames: Clip


class ReferenceClips:
    """Held-out clips by their style, of which every prompt is given one of a random style.

    Which one is a pure function of the seed and of the row of the prompt's own clip; never that
    clip itself.

    Attributes:
        chance: of meeting their style without looking at them.

    Raises:
        ConfigError: of fewer than two styles there are two held-out clips.
    """

    def __init__(
        self, index: DatasetIndex, splits: Sequence[str], window: Window, seed: int
    ) -> None:
        rows = np.concatenate([index.rows_of(name)[:MOST_REFERENCES] for name in splits])
        captions = index.take(rows).column("caption").to_pylist()
        styles = np.array([style_of(caption) or "" for caption in captions])
        # Two of a style, or else the clip of a prompt could be the only one.
        self.groups: dict[Style, np.ndarray] = {
            style: rows[styles == style] for style in STYLES if (styles == style).sum() > 1
        }
        if len(self.groups) < 2:
            raise ConfigError(
                f"style_references=true: the held-out captions of {index.root} name "
                f"{len(self.groups)} of {len(STYLES)} styles twice; two such styles are needed"
            )
        self.index, self.seed = index, seed
        self.chance = 1 / len(self.groups)
        opener = VideoOpener(windows=[window], seed=0, motion=False)
        self.reader = Reader(root=index.root, opener=opener, spares=())

    def of(self, row: int) -> Reference:
        """The reference of the prompt of a row; a damaged clip is passed over.

        Raises:
            CommandError: no clip of its style can be read.
        """
        toss, place = np.random.default_rng((self.seed, row, 3)).random(2)
        style = list(self.groups)[int(toss * len(self.groups))]
        group = self.groups[style]
        for number in np.roll(group[group != row], -int(place * len(group))):
            (asked,) = references(
                self.index.take(np.array([number])), np.array([number]), 0
            ).to_pylist()
            try:
                return Reference(style=style, frames=self.reader.read(asked)["pixels"])
            except DAMAGE:
                continue
        raise CommandError(
            f"no held-out clip of {self.index.root} in {style} style can be read; check the data "
            f"with python -m pipelines.prepare verify={self.index.root}"
        )


def sample_like(
    model: VideoModel,
    captions: Sequence[str],
    shown: Sequence[Reference],
    *,
    seed: int,
    first: int,
    settings: Sampling,
    device: torch.device,
) -> list[dict[str, Clip]]:
    """Per caption the sample with its reference and the one without, of the same noise."""
    prompts = [without_style(caption) for caption in captions]
    looks = {"reference": np.stack([other.frames for other in shown]), "no_reference": None}
    both = {
        name: write_clips(
            model,
            prompts,
            seed=seed,
            first=first,
            settings=settings,
            reference=frames,
            device=device,
        )
        for name, frames in looks.items()
    }
    return [{name: clips[i] for name, clips in both.items()} for i in range(len(prompts))]


def look_at(
    clips: Mapping[str, Clip], caption: str, reference: Reference | None, fps: float
) -> dict[str, Look]:
    """Of every clip of a prompt: those made for a reference are to be in its style, others in that
    of the caption. Nothing where the caption is not of the shape world."""
    own = style_of(caption)
    if own is None:
        return {}
    asked: dict[str, Style] = dict.fromkeys(("real", "reconstruction", "generated"), own)
    if reference is not None:
        asked |= dict.fromkeys(("reference", "no_reference"), reference.style)
    return {
        name: Look.of(clips[name], caption, style, fps)
        for name, style in asked.items()
        if name in clips
    }


def style_scores(looks: Sequence[Mapping[str, Look]]) -> dict[str, Any]:
    """Of all prompts of a split, by what the clips are."""
    names = dict.fromkeys(name for one in looks for name in one)
    return {
        name: reduce(Look.merge, [one[name] for one in looks if name in one], Look()).scores()
        for name in names
    }
