"""Stage 2: train the generator on the latents of a frozen tokenizer, encoded now or before."""

import torch
from torch import nn

from hstvg.generator.hierarchical import GeneratorExample, HierarchicalGenerator
from hstvg.generator.motion import motion_channels
from hstvg.paths.draws import Draws
from hstvg.scales import Scale
from hstvg.tokenizer.video_tokenizer import VideoTokenizer
from hstvg.types import Condition, LatentBatch, Prediction, TrainingBatch, VideoBatch


class GeneratorStage(nn.Module):
    """Predicts velocities of appearance and motion for the objective of stage 2."""

    def __init__(self, *, generator: HierarchicalGenerator, tokenizer: VideoTokenizer) -> None:
        super().__init__()
        self.generator = generator
        # In a tuple, so that it is no submodule: neither trained, nor sharded, nor saved again.
        self._frozen = (tokenizer.eval().requires_grad_(False),)

    @property
    def tokenizer(self) -> VideoTokenizer:
        return self._frozen[0]

    @torch.no_grad()
    def example(self, batch: TrainingBatch, draws: Draws) -> GeneratorExample:
        if isinstance(batch, VideoBatch):
            batch = encode_batch(self.tokenizer.to(batch.pixels.device), batch)
        known = None
        # An encoder that is trained along has to see the captions themselves.
        if self.generator.text.frozen and batch.text is not None and batch.text_mask is not None:
            known = Condition(text=batch.text, text_mask=batch.text_mask)
        return self.generator.example(
            batch.latent, batch.motion, batch.motion_confidence, batch.captions, draws, known
        )

    def forward(self, example: GeneratorExample) -> Prediction:
        return self.generator(example)


@torch.no_grad()
def encode_batch(tokenizer: VideoTokenizer, batch: VideoBatch) -> LatentBatch:
    """The latents of clips and their motion channels: what a generator trains on.

    Raises:
        ValueError: the clips came without motion.
    """
    if batch.motion is None or batch.motion_confidence is None:
        raise ValueError("the generator denoises motion; set data.motion=true")
    z = tokenizer.encode(batch.pixels)
    size = Scale(*z.shape[2:])
    motion, confidence = motion_channels(batch.motion, batch.motion_confidence, size)
    return LatentBatch(
        latent=z,
        motion=motion,
        motion_confidence=confidence,
        captions=batch.captions,
        positions=batch.positions,
        keys=batch.keys,
    )
