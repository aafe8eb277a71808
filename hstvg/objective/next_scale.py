"""NextScaleTerm: the transformer says of every scale what the codec says of it.

L_AR = sum_k w_k CE(logits_k, codes_k) with w_k in proportion to N_k^p of its N_k tokens: with p = 1
the last scale would be nearly all of the loss, with p = 0 the one token of the first.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import squared_error
from hstvg.types import CodePair, Prediction, TrainingBatch


class NextScaleTerm:
    """Cross-entropy of codes in nats per channel, or squared error of velocities, over the rungs.

    Args:
        power: p; 0 to 1.
    """

    def __init__(self, power: float = 0.5) -> None:
        self.power = power

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        rungs = prediction.codes or prediction.residuals
        assert rungs, "NextScaleTerm needs Prediction.codes or Prediction.residuals"
        total = torch.zeros(len(batch), device=batch.positions.device)
        weights = []
        for rung in rungs:
            if isinstance(rung, CodePair):
                value, tokens = _cross_entropy(rung), rung.codes.shape[2]
            else:
                value, tokens = squared_error(rung), rung.guess[0, 0].numel()
            weights.append(tokens**self.power)
            total = total.to(value) + weights[-1] * value
        return total / sum(weights)


def _cross_entropy(pair: CodePair) -> Float[Tensor, "B"]:
    logits = pair.logits.float().movedim(-1, 1)
    return F.cross_entropy(logits, pair.codes, reduction="none").flatten(1).mean(1)
