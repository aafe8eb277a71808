"""Stage 2: train the generator on the latents of a frozen tokenizer."""

import torch
from torch import nn

from hstvg.generator.hierarchical import GeneratorExample, HierarchicalGenerator
from hstvg.generator.motion import motion_channels
from hstvg.paths.draws import Draws
from hstvg.scales import Scale
from hstvg.tokenizer.video_tokenizer import VideoTokenizer
from hstvg.types import Prediction, VideoBatch


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
    def example(self, batch: VideoBatch, draws: Draws) -> GeneratorExample:
        z = self.tokenizer.to(batch.pixels.device).encode(batch.pixels)
        if batch.motion is None or batch.motion_confidence is None:
            raise ValueError("the generator denoises motion; set data.motion=true")
        size = Scale(*z.shape[2:])
        motion, confidence = motion_channels(batch.motion, batch.motion_confidence, size)
        return self.generator.example(z, motion, confidence, batch.captions, draws)

    def forward(self, example: GeneratorExample) -> Prediction:
        return self.generator(example)
