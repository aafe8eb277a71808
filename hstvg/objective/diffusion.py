"""DiffusionTerm: the guessed velocity of the appearance channels is the path's velocity.

L_diffusion of the proposal in its flow-matching form (arXiv 2210.02747), one mean per level.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import squared_error, squared_size
from hstvg.types import Prediction, TrainingBatch


class DiffusionTerm:
    """Mean squared velocity error over appearance channels, averaged over the levels."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        assert prediction.velocity, "DiffusionTerm needs Prediction.velocity"
        return torch.stack([squared_error(pair) for pair in prediction.velocity]).mean(0)

    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        """Of velocity 0, which an untrained network guesses."""
        return torch.stack([squared_size(pair) for pair in prediction.velocity]).mean(0)
