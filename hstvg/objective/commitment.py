"""CommitmentTerm: the latent keeps near what its codes can say of it (arXiv 1711.00937)."""

from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import squared_error
from hstvg.types import Prediction, TrainingBatch


class CommitmentTerm:
    """Squared distance of the standardised latent z from its quantised z_hat_K, held fixed."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        assert prediction.commitment is not None, "CommitmentTerm needs Prediction.commitment"
        return squared_error(prediction.commitment)
