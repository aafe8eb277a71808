"""PerceptualTerm: decoded clips look like the true ones to a network that reads clips.

As arXiv 1801.03924 compares images, with features of this project's own (stage=features), which see
motion too. Features of a network that was never trained are hardly better than pixels.
"""

from copy import deepcopy
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.nn.features import FeatureNetwork, load_features
from hstvg.types import Prediction, TrainingBatch


class PerceptualTerm:
    """Squared distance of the features' directions, averaged over places and levels.

    The network is loaded when it is first used, on whichever device the pixels are; it is never
    trained, and belongs to no stage's state.

    Args:
        features: export folder of a run of stage=features, or a network.

    Raises:
        ValueError: the folder is no export.
    """

    def __init__(self, features: str | Path | FeatureNetwork) -> None:
        if not isinstance(features, FeatureNetwork) and not Path(features, "config.json").is_file():
            raise ValueError(
                f"features={features} holds no exported network; train one with "
                "python -m pipelines.train stage=features run.name=feat ..., and name "
                "runs/feat/export"
            )
        self.features = features
        self._loaded: dict[torch.device, FeatureNetwork] = {}

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        pair = prediction.pixels
        assert pair is not None, "PerceptualTerm needs Prediction.pixels"
        network = self._on(pair.guess.device)
        with torch.no_grad():
            want = network.levels(pair.target.float())
        distances = [
            (direction(guess) - direction(target)).square().sum(1).flatten(1).mean(1)
            for guess, target in zip(network.levels(pair.guess.float()), want, strict=True)
        ]
        return torch.stack(distances).mean(0)

    def _on(self, device: torch.device) -> FeatureNetwork:
        if device not in self._loaded:
            given = self.features
            network = deepcopy(given) if isinstance(given, FeatureNetwork) else load_features(given)
            self._loaded[device] = network.eval().requires_grad_(False).to(device)
        return self._loaded[device]


def direction(x: Float[Tensor, "B C *axes"]) -> Float[Tensor, "B C *axes"]:
    """Every place's channels at length 1; at 0 where all are 0, with a gradient there too."""
    return x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt()
