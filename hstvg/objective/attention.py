"""AttentionTerm: where attention looks, if it looks into a frame, is where the content went.

L_attention (lambda 2) of the proposal, read as correspondence: entropy or smoothness of attention
would be least where attention is constant, which says nothing. Here uniform rows cost log(cells),
and rows on the same place in every frame fail wherever something moves; a perfect row costs 0.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import weighted_mean
from hstvg.types import Pair, Prediction, TrainingBatch


class AttentionTerm:
    """Kullback-Leibler divergence in nats of the rows from the true places, averaged over what is
    looked up, by trust; then over the levels.

    Args:
        grounding: weight of the rows that look for objects in their boxes, where there are any,
            beside those that look for cells where they went.
    """

    def __init__(self, grounding: float = 0.2) -> None:
        self.grounding = grounding

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        assert prediction.attention, "AttentionTerm needs Prediction.attention"
        return self._sum(prediction.attention, prediction.grounding)

    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        """Of looking everywhere alike: log(cells) where a place is a whole cell."""
        return self._sum(everywhere(prediction.attention), everywhere(prediction.grounding))

    def _sum(self, tracks: Sequence[Pair], boxes: Sequence[Pair]) -> Float[Tensor, "B"]:
        total = torch.stack([divergence(pair) for pair in tracks]).mean(0)
        if boxes:
            total = total + self.grounding * torch.stack([divergence(p) for p in boxes]).mean(0)
        return total


def everywhere(rows: Sequence[Pair]) -> list[Pair]:
    """The same, but looking everywhere alike."""
    return [replace(p, guess=torch.full_like(p.guess, -log(p.guess.shape[-1]))) for p in rows]


def divergence(pair: Pair) -> Float[Tensor, "B"]:
    """Of rows of log probabilities from rows of probabilities, both on the last axis."""
    target = pair.target.detach().float()
    nats = (torch.xlogy(target, target) - target * pair.guess.float()).sum(-1, keepdim=True)
    return weighted_mean(nats, pair)
