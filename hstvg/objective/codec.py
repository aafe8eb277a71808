"""CodecTerm: every coarse state of the codec is as near to the latent as its scale allows.

Trains the detail guesses g_k of ScaleCodec; 1 minus this value is the explained variance, averaged
over the scales before the last.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.objective.objective import squared_error
from hstvg.types import Prediction, TrainingBatch


class CodecTerm:
    """Squared error of z_hat_k over the variance of z in its clip, averaged over coarse k."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        assert prediction.coarse, "CodecTerm needs Prediction.coarse"
        spread = prediction.coarse[0].target.detach().float().flatten(1).var(1).clamp_min(1e-6)
        errors = [squared_error(pair) / spread for pair in prediction.coarse]
        return torch.stack(errors).mean(0)
