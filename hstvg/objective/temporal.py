"""TemporalTerm: the decoded change from frame to frame is the true change."""

from jaxtyping import Float
from torch import Tensor

from hstvg.types import Prediction, TrainingBatch


class TemporalTerm:
    """Absolute error of the frame difference of pixels in [-1, 1]; 0 for one frame."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        pair = prediction.pixels
        assert pair is not None, "TemporalTerm needs Prediction.pixels"
        error = pair.guess.float() - pair.target.detach().float()
        if error.shape[2] < 2:
            return error.flatten(1).mean(1) * 0
        return error.diff(dim=2).abs().flatten(1).mean(1)
