"""Running statistics: measured while training, read-only for the gradient, float32 always."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MEMORY = 200
"""Training steps over which a statistic is averaged; the first steps are averaged evenly."""


class Statistic(nn.Module):
    """The running mean of a tensor over the training steps.

    It is updated between steps, with values that are means over all workers and micro-batches: all
    ranks hold the same, and a resumed run, or one on other workers, measures what it would have.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.value: Tensor
        self.count: Tensor
        self.register_buffer("value", start.float())
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def observe(self, value: Tensor) -> None:
        self.count += 1
        self.value += (value.to(self.value) - self.value) / self.count.clamp_max(MEMORY)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move with the model, but never through its lower precision: increments would vanish."""

        def move(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        return super()._apply(move, recurse)
