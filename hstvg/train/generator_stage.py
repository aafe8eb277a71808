"""Stage 2: train the generator on the latents of a frozen tokenizer, encoded now or before."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hstvg.generator.generator import Generator
from hstvg.generator.motion import motion_channels
from hstvg.paths.draws import Draws
from hstvg.scales import Scale
from hstvg.scene.raster import in_latent_frames
from hstvg.tokenizer.scale_tokenizer import ScaleTokenizer
from hstvg.types import Condition, LatentBatch, Prediction, TrainingBatch, VideoBatch


class GeneratorStage(nn.Module):
    """Predicts what the objective of stage 2 compares, by whatever generator."""

    def __init__(self, *, generator: Generator, tokenizer: ScaleTokenizer) -> None:
        super().__init__()
        self.generator = generator
        # In a tuple, so that it is no submodule: neither trained, nor sharded, nor saved again.
        self._frozen = (tokenizer.eval().requires_grad_(False),)

    @property
    def tokenizer(self) -> ScaleTokenizer:
        return self._frozen[0]

    @torch.no_grad()
    def example(self, batch: TrainingBatch, draws: Draws) -> Any:
        if isinstance(batch, VideoBatch):
            batch = encode_batch(self.tokenizer.to(batch.pixels.device), batch)
        self.tokenizer.to(batch.latent.device)  # no submodule, so it does not move with the stage
        known = None
        # An encoder that is trained along has to see the captions themselves.
        if self.generator.text.frozen and batch.text is not None and batch.text_mask is not None:
            known = Condition(text=batch.text, text_mask=batch.text_mask)
        return self.generator.example(batch, self.tokenizer.codec, draws, known)

    def forward(self, example: Any) -> Prediction:
        return self.generator(example)

    def observe(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Nothing is measured: the tokenizer is frozen."""
        return {}


@torch.no_grad()
def encode_batch(tokenizer: ScaleTokenizer, batch: VideoBatch) -> LatentBatch:
    """The latents of clips and what is known of them, on their grid: what a generator trains on."""
    z = tokenizer.encode(batch.pixels)
    motion = confidence = None
    if batch.motion is not None and batch.motion_confidence is not None:
        size = Scale(*z.shape[2:])
        motion, confidence = motion_channels(batch.motion, batch.motion_confidence, size)
    layout = batch.layout and in_latent_frames(batch.layout, z.shape[2])
    return LatentBatch(
        latent=z,
        motion=motion,
        motion_confidence=confidence,
        captions=batch.captions,
        positions=batch.positions,
        keys=batch.keys,
        layout=layout,
    )
