"""Stage 1: train the tokenizer to rebuild clips from their latent and from what its codes keep."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.paths.draws import Draws
from hstvg.tokenizer.scale_tokenizer import ScaleTokenizer
from hstvg.types import LatentPyramid, Pair, Prediction, VideoBatch


@dataclass(frozen=True, kw_only=True)
class TokenizerExample:
    pixels: Float[Tensor, "B 3 T H W"]
    noise: Float[Tensor, "B C t h w"]
    choice: Float[Tensor, "B"]
    """Uniform in [0, 1): which state of the codec the decoder sees."""


class TokenizerStage(nn.Module):
    """Predicts pixels, posterior and the codec's states for the objective of stage 1.

    Args:
        coded_share: share of clips decoded from z_hat_K, all that the codes keep. The encoder gets
            the gradient as if it were z (straight through, arXiv 1308.3432).
        prefix_share: share decoded from a coarser z_hat_k, k uniform, so that every prefix of
            scales can be looked at, and what matters moves into the first of them.
    """

    def __init__(
        self,
        *,
        tokenizer: ScaleTokenizer,
        coded_share: float = 0.35,
        prefix_share: float = 0.15,
    ) -> None:
        super().__init__()
        if coded_share < 0 or prefix_share < 0 or coded_share + prefix_share > 1:
            raise ValueError(
                f"coded_share={coded_share} and prefix_share={prefix_share} are shares of the "
                "clips: from 0, and together at most 1"
            )
        self.tokenizer = tokenizer
        self.coded_share = coded_share
        self.prefix_share = prefix_share

    @torch.no_grad()
    def example(self, batch: VideoBatch, draws: Draws) -> TokenizerExample:
        size = self.tokenizer.size_of(batch.pixels.shape[2:])
        return TokenizerExample(
            pixels=batch.pixels,
            noise=draws.normal("posterior", self.tokenizer.channels, *size),
            choice=draws.uniform("prefix"),
        )

    def forward(self, example: TokenizerExample) -> Prediction:
        tokenizer, codec = self.tokenizer, self.tokenizer.codec
        posterior = tokenizer.posterior(example.pixels)
        raw = posterior.mean + (0.5 * posterior.logvar).exp() * example.noise
        z = tokenizer.standardise(raw)
        # The codec learns to guess detail of a latent it cannot change.
        split = codec.split(z.detach())
        states = codec.pyramid(split.states, z.shape[2:])
        coded = z + (states.finest - z).detach()
        pixels = tokenizer.reconstruct(self._seen(z, coded, states, example.choice))
        return Prediction(
            pixels=Pair(guess=pixels, target=example.pixels),
            posterior=posterior,
            coarse=tuple(Pair(guess=state, target=z.detach()) for state in states.levels[:-1]),
            commitment=Pair(guess=z, target=states.finest.detach()),
            statistics=tokenizer.measure(raw) | codec.measure(split, z.shape[2:]),
        )

    def observe(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Update what the tokenizer knows of its latent; the entropy of each rung's codes."""
        self.tokenizer.observe(statistics)
        codec = self.tokenizer.codec
        shares = codec.entropy().tolist()
        rungs = {rung.kind: rung.scale for rung in codec.schedule.rungs}
        return {f"codes/entropy_{kind}_{scale}": shares[kind] for kind, scale in rungs.items()}

    def _seen(
        self,
        z: Float[Tensor, "B C t h w"],
        coded: Float[Tensor, "B C t h w"],
        states: LatentPyramid,
        choice: Float[Tensor, "B"],
    ) -> Float[Tensor, "B C t h w"]:
        """What the decoder sees of every clip: z, or all that is coded of it, or a prefix."""
        coarse = torch.stack(states.levels[:-1], dim=1).detach()
        K = coarse.shape[1]
        k = (choice / max(self.prefix_share, 1e-6) * K).long().clamp_max(K - 1)
        prefix = coarse[torch.arange(len(z), device=z.device), k]
        choice = choice.view(-1, 1, 1, 1, 1)
        seen = torch.where(choice < self.prefix_share + self.coded_share, coded, z)
        return torch.where(choice < self.prefix_share, prefix, seen)
