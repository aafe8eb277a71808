"""Stage 1: train the tokenizer to rebuild clips from their latent and from its coarse states."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.paths.draws import Draws
from hstvg.tokenizer.video_tokenizer import VideoTokenizer
from hstvg.types import Pair, Prediction, VideoBatch


@dataclass(frozen=True, kw_only=True)
class TokenizerExample:
    pixels: Float[Tensor, "B 3 T H W"]
    noise: Float[Tensor, "B C t h w"]
    choice: Float[Tensor, "B"]
    """Uniform in [0, 1): which state of the codec the decoder sees."""


class TokenizerStage(nn.Module):
    """Predicts pixels, posterior and coarse states for the objective of stage 1.

    Args:
        prefix_share: share of clips decoded from a coarse state z_hat_k, k uniform, rather than
            from z, so that every prefix of scales can be looked at.
    """

    def __init__(self, *, tokenizer: VideoTokenizer, prefix_share: float = 0.1) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.prefix_share = prefix_share

    @torch.no_grad()
    def example(self, batch: VideoBatch, draws: Draws) -> TokenizerExample:
        clip, strides = batch.pixels.shape[2:], self.tokenizer.strides
        size = [n // stride for n, stride in zip(clip, strides, strict=True)]
        return TokenizerExample(
            pixels=batch.pixels,
            noise=draws.normal("posterior", self.tokenizer.channels, *size),
            choice=draws.uniform("prefix"),
        )

    def forward(self, example: TokenizerExample) -> Prediction:
        posterior = self.tokenizer.posterior(example.pixels)
        z = posterior.mean + (0.5 * posterior.logvar).exp() * example.noise
        # The codec learns to guess detail of a latent it cannot change.
        _, states = self.tokenizer.codec.split(z.detach())
        seen = self._seen(z, torch.stack(states.levels[:-1], dim=1).detach(), example.choice)
        pixels = self.tokenizer.reconstruct(seen)
        return Prediction(
            pixels=Pair(guess=pixels, target=example.pixels),
            posterior=posterior,
            coarse=tuple(Pair(guess=state, target=z.detach()) for state in states.levels[:-1]),
        )

    def _seen(
        self,
        z: Float[Tensor, "B C t h w"],
        coarse: Float[Tensor, "B K C t h w"],
        choice: Float[Tensor, "B"],
    ) -> Float[Tensor, "B C t h w"]:
        """z for most clips; for `prefix_share` of them one of its coarse states."""
        K = coarse.shape[1]
        k = (choice / max(self.prefix_share, 1e-6) * K).long().clamp_max(K - 1)
        state = coarse[torch.arange(len(z), device=z.device), k]
        return torch.where((choice < self.prefix_share).view(-1, 1, 1, 1, 1), state, z)
