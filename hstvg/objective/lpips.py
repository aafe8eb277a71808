"""LpipsTerm: decoded frames look like the true ones to LPIPS (arXiv 1801.03924)."""

from copy import deepcopy
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.nn.lpips import Lpips, load_lpips
from hstvg.types import Prediction, TrainingBatch


class LpipsTerm:
    """LPIPS, averaged over the frames of a clip.

    The network is loaded when it is first used, on whichever device the pixels are; it is never
    trained, and belongs to no stage's state.

    Args:
        weights: file with the published weights, which hstvg.nn.lpips tells how to make; or a
            network that has them.

    Raises:
        ValueError: there is no such file.
    """

    def __init__(self, weights: str | Path | Lpips) -> None:
        if not isinstance(weights, Lpips) and not Path(weights).is_file():
            raise ValueError(
                f"weights={weights} is no file; hstvg/nn/lpips.py tells how to make it"
            )
        self.weights = weights
        self._loaded: dict[torch.device, Lpips] = {}

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        pair = prediction.pixels
        assert pair is not None, "LpipsTerm needs Prediction.pixels"
        guess, target = (
            clip.float().transpose(1, 2).flatten(0, 1)
            for clip in (pair.guess, pair.target.detach())
        )
        distances = self._on(guess.device)(guess, target)
        return distances.view(len(pair.guess), -1).mean(1)

    def _on(self, device: torch.device) -> Lpips:
        if device not in self._loaded:
            given = self.weights
            network = deepcopy(given) if isinstance(given, Lpips) else load_lpips(given)
            self._loaded[device] = network.to(device)
        return self._loaded[device]
