"""RefinementTerm: a refined latent is the true one, and changes from frame to frame as it does.

L_refinement (lambda 3) of the proposal. With M the trust in the motion and delta_W what is new in a
frame beside the one before, carried to it:

    L = sum_k rho^(R-k) ||z^(k) - z||^2 + eta ||M (delta_W z^(R) - delta_W z)||^2

Real change is far from 0, since warping is not exact and things come into view: it is matched.
Minimised, it would be least for a video that is frozen or blurred.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import squared_error
from hstvg.types import Pair, Prediction, TrainingBatch


class RefinementTerm:
    """Mean squared errors of every step and of the last one's change.

    Args:
        rho: share of a step's weight that the step before it has; above 0.
        eta: weight of the change.
    """

    def __init__(self, *, rho: float = 0.5, eta: float = 0.5) -> None:
        if not 0 < rho <= 1 or eta < 0:
            raise ValueError(f"rho={rho} must lie in (0, 1] and eta={eta} be 0 or more")
        self.rho = rho
        self.eta = eta

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        _, *steps = self._steps(prediction)
        R = len(steps)
        errors = [self.rho ** (R - k) * squared_error(pair) for k, pair in enumerate(steps, 1)]
        return torch.stack(errors).sum(0) + self.eta * squared_error(prediction.refined_change[-1])

    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        """Of leaving the latent as it came, which an untrained refiner does."""
        came, *steps = self._steps(prediction)
        weight = sum(self.rho**k for k in range(len(steps)))
        return weight * squared_error(came) + self.eta * squared_error(prediction.refined_change[0])

    @staticmethod
    def _steps(prediction: Prediction) -> tuple[Pair, ...]:
        assert prediction.refined, "RefinementTerm needs Prediction.refined"
        return prediction.refined
