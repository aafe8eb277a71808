"""NextScaleTerm: the transformer says of every scale what the codec says of it.

L_AR = sum_k w_k CE(logits_k, codes_k) with w_k in proportion to N_k^p of its N_k tokens: with p = 1
the last scale would be nearly all of the loss, with p = 0 the one token of the first.
"""

from collections.abc import Callable
from functools import reduce
from math import log
from operator import add

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import squared_error, squared_size
from hstvg.types import CodePair, Pair, Prediction, TrainingBatch


class NextScaleTerm:
    """Cross-entropy of codes in nats per channel, or squared error of velocities, over the rungs.

    Args:
        power: p; 0 to 1.
    """

    def __init__(self, power: float = 0.5) -> None:
        self.power = power

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        return self._average(prediction, _cost)

    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        """Of all codes alike, log L; of velocity 0."""
        return self._average(prediction, _trivial_cost)

    def _average(
        self, prediction: Prediction, cost: Callable[[CodePair | Pair], Tensor]
    ) -> Float[Tensor, "B"]:
        rungs = prediction.codes or prediction.residuals
        assert rungs, "NextScaleTerm needs Prediction.codes or Prediction.residuals"
        weights = [_tokens(rung) ** self.power for rung in rungs]
        costs = [weight * cost(rung) for weight, rung in zip(weights, rungs, strict=True)]
        return reduce(add, costs) / sum(weights)


def _tokens(rung: CodePair | Pair) -> int:
    return rung.codes.shape[2] if isinstance(rung, CodePair) else rung.guess[0, 0].numel()


def _cost(rung: CodePair | Pair) -> Float[Tensor, "B"]:
    if isinstance(rung, Pair):
        return squared_error(rung)
    logits = rung.logits.float().movedim(-1, 1)
    return F.cross_entropy(logits, rung.codes, reduction="none").flatten(1).mean(1)


def _trivial_cost(rung: CodePair | Pair) -> Float[Tensor, "B"]:
    if isinstance(rung, Pair):
        return squared_size(rung)
    B, *_, L = rung.logits.shape
    return torch.full((B,), log(L), device=rung.logits.device)
