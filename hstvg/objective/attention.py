"""AttentionTerm: where attention looks, if it looks into a frame, is where the content went.

L_attention (lambda 2) of the proposal, read as correspondence: entropy or smoothness of attention
would be least where attention is constant, which says nothing. Here uniform rows cost log(cells),
and rows on the same place in every frame fail wherever something moves; a perfect row costs 0.
"""

from dataclasses import replace
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import weighted_mean
from hstvg.types import Pair, Prediction, TrainingBatch


class AttentionTerm:
    """Kullback-Leibler divergence in nats of the rows from the true places, averaged over what is
    looked up, by trust; then over the levels."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        assert prediction.attention, "AttentionTerm needs Prediction.attention"
        return torch.stack([divergence(pair) for pair in prediction.attention]).mean(0)

    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        """Of looking everywhere alike: log(cells) where a place is a whole cell."""
        rows = prediction.attention
        everywhere = [
            replace(p, guess=torch.full_like(p.guess, -log(p.guess.shape[-1]))) for p in rows
        ]
        return torch.stack([divergence(pair) for pair in everywhere]).mean(0)


def divergence(pair: Pair) -> Float[Tensor, "B"]:
    """Of rows of log probabilities from rows of probabilities, both on the last axis."""
    target = pair.target.detach().float()
    nats = (torch.xlogy(target, target) - target * pair.guess.float()).sum(-1, keepdim=True)
    return weighted_mean(nats, pair)
