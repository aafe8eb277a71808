"""WaveletTerm: decoded pixels have the wavelet coefficients of the true ones.

The Haar transform over time, rows and columns, whose subbands tokenizers that work in wavelet space
compare (arXiv 2411.17459). An error of fine detail costs more than a smooth one of the same size.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hstvg.nn.resample import Factor, haar, to_depth
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
            bands = haar(to_depth(_even(low), BLOCK), BLOCK).unflatten(1, (-1, BLOCK.volume))
            low = bands[:, :, 0]
            parts.append(bands[:, :, 1:].flatten(1))
        return torch.cat([*parts, low.flatten(1)], dim=1).abs().mean(1)


def _even(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t h w"]:
    """Axes of odd length with their first cell twice: a first frame alone becomes a still pair."""
    T, H, W = x.shape[2:]
    return F.pad(x, (W % 2, 0, H % 2, 0, T % 2, 0), mode="replicate")
