"""ReconstructionTerm: the decoded pixels are the pixels.

Charbonnier penalty sqrt(d^2 + eps^2) - eps: quadratic below eps, absolute above (Charbonnier 1994).
"""

from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import weighted_mean
from hstvg.types import Prediction, TrainingBatch


class ReconstructionTerm:
    """Charbonnier distance of pixels in [-1, 1].

    Args:
        epsilon: width of the quadratic part, in pixel units.
    """

    def __init__(self, epsilon: float = 0.05) -> None:
        self.epsilon = epsilon

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        pair = prediction.pixels
        assert pair is not None, "ReconstructionTerm needs Prediction.pixels"
        difference = pair.guess.float() - pair.target.detach().float()
        error = (difference.square() + self.epsilon**2).sqrt() - self.epsilon
        return weighted_mean(error, pair)
