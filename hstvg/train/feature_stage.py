"""A stage of its own: a network learns to read the captions of shape-world clips from their pixels.

What it learns to see makes the perceptual term of stage 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.features import FeatureNetwork
from hstvg.paths.draws import Draws
from hstvg.scene.grammar import CAMERAS, COLOURS, MOTIONS, SHAPES, SPEEDS, STYLES, read_caption
from hstvg.types import Pair, Prediction, VideoBatch

WORDS: Mapping[str, tuple[str | None, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": tuple(MOTIONS),
    "speed": tuple(SPEEDS),
    "camera": tuple(CAMERAS),
    "style": STYLES,
}
"""Kind -> its words; a speed of None is the ordinary one. Each word is true or not of a clip, so
that captions of several objects, whose order cannot be seen, are read like those of one."""
NUM_WORDS = sum(len(words) for words in WORDS.values())


@dataclass(frozen=True, kw_only=True)
class FeatureExample:
    pixels: Float[Tensor, "B 3 T H W"]
    shown: Float[Tensor, "B N"]
    """1 where the caption holds the word."""


class FeatureStage(nn.Module):
    """Predicts the words of captions from pixels.

    Raises:
        ValueError: the network has another number of words.
    """

    def __init__(self, *, features: FeatureNetwork) -> None:
        super().__init__()
        if features.num_words != NUM_WORDS:
            raise ValueError(
                f"features.num_words={features.num_words}, but captions have {NUM_WORDS} words"
            )
        self.features = features

    @torch.no_grad()
    def example(self, batch: VideoBatch, draws: Draws) -> FeatureExample:
        """Raises ValueError if a caption is none of the shape world."""
        shown = torch.tensor([words_of(caption) for caption in batch.captions])
        return FeatureExample(pixels=batch.pixels, shown=shown.to(batch.pixels))

    def forward(self, example: FeatureExample) -> Prediction:
        pixels = example.pixels.to(self.features.leave.weight.dtype)
        logits = self.features(pixels).float()
        right = ((logits > 0) == (example.shown > 0)).split([len(w) for w in WORDS.values()], 1)
        return Prediction(
            words=Pair(guess=logits, target=example.shown),
            # A kind counts as read if all its words are.
            statistics={
                f"accuracy/{kind}": each.all(1).float().mean()
                for kind, each in zip(WORDS, right, strict=True)
            },
        )

    def observe(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Nothing is kept."""
        return {}


def words_of(caption: str) -> list[float]:
    """1 per word that a caption holds, 0 per other, kind by kind."""
    said = read_caption(caption)
    held = {kind: {getattr(thing, kind) for thing in said.objects} for kind in list(WORDS)[:4]}
    held |= {"camera": {said.camera}, "style": {said.style}}
    return [float(word in held[kind]) for kind, words in WORDS.items() for word in words]
