"""WaveletTerm: decoded pixels have the wavelet coefficients of the true ones.

The Haar transform over time, rows and columns, whose subbands tokenizers that work in wavelet space
compare (arXiv 2411.17459). An error of fine detail costs more than a smooth one of the same size.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.nn.haar_bank import haar_bands
from hstvg.nn.resample import Factor
from hstvg.types import Prediction, TrainingBatch

BLOCK = Factor(2, 2, 2)


class WaveletTerm:
    """Mean absolute error of the orthonormal 3D Haar coefficients of pixels in [-1, 1].

    Args:
        levels: how often the low-pass part, half as large along each axis, is transformed again;
            clips must then have 2^levels rows and columns at least.

    Raises:
        ValueError: levels is below 1.
    """

    def __init__(self, levels: int = 2) -> None:
        if levels < 1:
            raise ValueError(f"levels={levels}: give 1 or more")
        self.levels = levels

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        pair = prediction.pixels
        assert pair is not None, "WaveletTerm needs Prediction.pixels"
        # The transform is linear: coefficients of the error are errors of the coefficients.
        low = pair.guess.float() - pair.target.detach().float()
        parts = []
        for _ in range(self.levels):
            bands = haar_bands(low, BLOCK)
            low = bands[:, :, 0]
            parts.append(bands[:, :, 1:].flatten(1))
        return torch.cat([*parts, low.flatten(1)], dim=1).abs().mean(1)
