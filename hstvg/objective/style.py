"""StyleTerm: a clip that is nearly clean looks like the true one.

L_style (lambda 4) of the proposal. With S the statistics of a frozen Haar bank (hstvg.nn.haar_bank)
and y_hat the clean latent that the velocity at tau points to:

    L = 1[tau >= late] mean (S(y_hat) - S(y))^2

InfoNCE of the same statistics against other clips is left out: a clip would cost another sum in
every other batch, and so on another number of workers. As benchmarks.contrast it hurt
(docs/ablation_loss.md). The truth looks as its reference does, and a frozen bank cannot collapse,
which contrast is there to prevent.
"""

from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import squared_error, squared_size
from hstvg.types import Pair, Prediction, TrainingBatch


class StyleTerm:
    """Mean squared error of the statistics; 0 for clips of which all times were too early."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        return squared_error(self._pair(prediction))

    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        """Of statistics 0, those of white noise in the low-pass part."""
        return squared_size(self._pair(prediction))

    @staticmethod
    def _pair(prediction: Prediction) -> Pair:
        assert prediction.style is not None, "StyleTerm needs Prediction.style"
        return prediction.style
