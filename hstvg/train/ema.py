"""Exponential moving average of the weights each rank holds."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class Ema:
    """float32 averages of a rank's weights; under ZeRO 3 of its own part of them.

    The decay warms up as min(decay, (1 + n) / (10 + n)) over updates n, so that early averages are
    not the initial weights.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: value.detach().float().clone() for name, value in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = [self.average[name] for name in weights]
        current = [value.detach().float() for value in weights.values()]
        torch._foreach_lerp_(averages, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def restore(self, averages: Iterable[tuple[str, Tensor]], updates: int) -> None:
        """Go on from averages, of all that this rank holds, after so many updates."""
        self.updates = updates
        for name, value in averages:
            self.average[name].copy_(value)
