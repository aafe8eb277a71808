"""KLTerm: the tokenizer's posterior stays near the standard normal (arXiv 1312.6114)."""

from jaxtyping import Float
from torch import Tensor

from hstvg.types import Prediction, TrainingBatch


class KLTerm:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats per latent value."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        posterior = prediction.posterior
        assert posterior is not None, "KLTerm needs Prediction.posterior"
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        return (0.5 * (mean.square() + logvar.exp() - 1 - logvar)).flatten(1).mean(1)
