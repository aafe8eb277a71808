"""FlowTerm: the guessed velocity of the motion channels is the path's velocity.

L_flow (lambda 1) of the proposal, read as flow matching of the motion field, denoised jointly with
appearance (arXiv 2502.02492). The target is measured or exact motion, so no frozen or blurred video
can lower it. Not a photometric warp error, which a blurred video minimises.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import squared_error, squared_size
from hstvg.types import Prediction, TrainingBatch


class FlowTerm:
    """Mean squared velocity error over motion channels, weighted by trust, averaged over levels."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        assert prediction.motion, "FlowTerm needs Prediction.motion"
        return torch.stack([squared_error(pair) for pair in prediction.motion]).mean(0)

    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        """Of velocity 0, which an untrained network guesses."""
        return torch.stack([squared_size(pair) for pair in prediction.motion]).mean(0)
