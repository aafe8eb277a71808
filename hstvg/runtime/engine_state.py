"""The training state of an engine as whole float32 tensors, whoever holds which part of them.

By name: weight/W, exp_avg/W and exp_avg_sq/W of a trained weight W (AdamW's moments), weight/W of a
frozen one, buffer/B, and `updates`, AdamW's own count of its steps. Of weights tied to one another
only the first name is there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hstvg.runtime.errors import CommandError

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")


@runtime_checkable
class Holding(Protocol):
    """How an engine's ranks hold weights and moments between them."""

    updates: list[Tensor]
    """AdamW's counts of its steps: as many as it has tensors, all the same."""

    def whole(self, weight: nn.Parameter, key: str) -> Tensor:
        """The float32 weight, or a moment of it; called by all ranks."""
        ...

    def take(self, weight: nn.Parameter, key: str, whole: Tensor) -> None:
        """Keep this rank's part of the float32 weight, or of a moment of it."""
        ...

    def refresh(self) -> None:
        """After the last `take`: compute with the new weights; called by all ranks."""
        ...


class Replicated:
    """Every rank holds everything.

    Args:
        optimizer: AdamW.
        masters: the float32 copy it updates of each weight, where that is not the weight itself.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        masters: Mapping[nn.Parameter, Tensor] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.masters = masters or {}
        trained = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.updates = start_moments(optimizer, trained)

    def whole(self, weight: nn.Parameter, key: str) -> Tensor:
        return self._held(weight, key)

    def take(self, weight: nn.Parameter, key: str, whole: Tensor) -> None:
        self._held(weight, key).copy_(whole)

    def refresh(self) -> None:
        for weight, master in self.masters.items():
            weight.data.copy_(master)

    def _held(self, weight: nn.Parameter, key: str) -> Tensor:
        master = self.masters.get(weight, weight)
        return master.detach() if key == WEIGHT else self.optimizer.state[master][key]


def start_moments(optimizer: torch.optim.Optimizer, weights: Iterable[Tensor]) -> list[Tensor]:
    """Give AdamW now the zeros that it would make at its first step; returns its counts."""
    fused = optimizer.param_groups[0].get("fused")
    for weight in weights:
        count = torch.zeros((), device=weight.device if fused else "cpu")
        moments = {key: torch.zeros_like(weight) for key in MOMENTS}
        optimizer.state[weight] = {"step": count, **moments}
    return [state["step"] for state in optimizer.state.values()]


def buffers_of(stage: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a model's state."""
    kept = stage.state_dict().keys()
    return {name: buffer for name, buffer in stage.named_buffers() if name in kept}


@torch.no_grad()
def state_of(stage: nn.Module, holding: Holding) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the state, one after another; iterated by all ranks to the end."""
    for name, weight in stage.named_parameters():
        for key in _keys(weight):
            yield f"{key}/{name}", holding.whole(weight, key)
    for name, buffer in buffers_of(stage).items():
        yield f"buffer/{name}", buffer
    yield "updates", holding.updates[0]


@torch.no_grad()
def restore(stage: nn.Module, holding: Holding, read: Callable[[str], Tensor]) -> None:
    """Take the state from what `read` says of each name; called by all ranks.

    Raises:
        CommandError: a tensor is of another shape.
    """
    for name, weight in stage.named_parameters():
        for key in _keys(weight):
            # Under ZeRO 3 a weight itself is empty while nobody computes with it.
            whole = _fitting(f"{key}/{name}", getattr(weight, "ds_shape", weight.shape), read)
            holding.take(weight, key, whole)
    for name, buffer in buffers_of(stage).items():
        buffer.copy_(_fitting(f"buffer/{name}", buffer.shape, read))
    for count in holding.updates:
        count.copy_(read("updates"))
    holding.refresh()


def _keys(weight: nn.Parameter) -> tuple[str, ...]:
    return (WEIGHT, *MOMENTS) if weight.requires_grad else (WEIGHT,)


def _fitting(name: str, shape: torch.Size, read: Callable[[str], Tensor]) -> Tensor:
    whole = read(name)
    if whole.shape != shape:
        sizes = f"{list(whole.shape)} in the checkpoint and {list(shape)} in the model"
        raise CommandError(f"{name} is {sizes}; give the run the settings it had")
    return whole
