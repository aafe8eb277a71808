"""The ports of the training loop: all it may know of the machine it runs on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hstvg.paths.draws import Draws
from hstvg.types import Prediction, TrainingBatch


@dataclass(frozen=True, kw_only=True)
class Substitution:
    """A damaged sample and what was trained in its place."""

    step: int
    position: int
    key: str
    reason: str
    substitute: str
    """Key of the sample shown instead."""


@runtime_checkable
class Stage(Protocol):
    """What is trained: prepares a batch without gradient, then predicts with it."""

    def example(self, batch: TrainingBatch, draws: Draws) -> Any: ...

    def __call__(self, example: Any) -> Prediction: ...

    def observe(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """After a step: take in the means over all clips of what was measured of them in
        `Prediction.statistics`, the same on all ranks; returns what is worth logging."""
        ...

    def train(self, mode: bool = True) -> Any:
        """As of nn.Module: dropout and the like on, or off."""
        ...


@runtime_checkable
class Engine(Protocol):
    """A stage spread over the workers, with its optimiser."""

    def __call__(self, example: Any) -> Prediction: ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one micro-batch; called `accumulation` times per step."""
        ...

    def step(self, lr: float) -> float:
        """Clip, update, clear; returns the norm of the gradient before clipping."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The weights this rank holds, by name: whole under ZeRO 0 to 2, its part under ZeRO 3."""
        ...

    def gather(self, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors, one after another, from what each rank holds; iterated by all ranks."""
        ...

    def part(self, name: str, whole: Tensor) -> Tensor:
        """What this rank holds of a whole tensor: the inverse of `gather`."""
        ...

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and optimiser as whole tensors by name, the same names whatever the engine and
        the number of ranks; iterated by all ranks."""
        ...

    def restore(self, read: Callable[[str], Tensor]) -> None:
        """Go on from a state: `read` gives the whole tensor of a name; called by all ranks."""
        ...


@runtime_checkable
class Saved(Protocol):
    """A checkpoint to go on from."""

    manifest: Mapping[str, Any]
    """Its step, and the facts that were kept with it."""

    def read(self, name: str) -> Tensor:
        """A whole tensor, on the CPU."""
        ...


@runtime_checkable
class Worker(Protocol):
    """One process among the workers of a run."""

    rank: int
    world_size: int
    device: torch.device

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all workers of a small tensor; called by all ranks."""
        ...

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all workers, in the order of their ranks; called by all ranks."""
        ...

    def say(self, line: str) -> None:
        """Show a line to whoever watches the run."""
        ...

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell whoever started the run; slow, so never once a step."""
        ...

    def resume(self) -> Saved | None:
        """The newest whole checkpoint, the same for all ranks; None if the run is new."""
        ...

    def checkpoint(
        self, step: int, facts: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]
    ) -> None:
        """Keep whole tensors by name, and facts in the manifest: all at once or not at all.

        Called by all ranks, which iterate the same tensors.
        """
        ...


@runtime_checkable
class Tracker(Protocol):
    """Where a run's numbers go."""

    def begin(self, step: int) -> None:
        """Forget what was logged after `step`, from which the run goes on."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def video(self, step: int, name: str, file: Path) -> None:
        """Keep a video; a .txt of the same name beside it is its prompt."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Stream(Protocol):
    """The clips of this worker in the order of the plan."""

    def train(self, first_step: int) -> Iterator[TrainingBatch]:
        """Micro-batches from a step on, endless: a TrainingBatch each, of the kind it streams."""
        ...

    def substitutions(self) -> list[Substitution]:
        """The damaged samples that this worker met since the last call."""
        ...

    def quarantine(self, found: list[Substitution], step: int) -> None:
        """Take down the damaged samples of all workers at a step; called by all ranks alike.

        Raises an error that ends the run where there are too many.
        """
        ...

    def held_out(self) -> Iterator[TrainingBatch]:
        """The same few held-out clips each time, equally many batches on every worker."""
        ...

    def sync(self) -> None:
        """Bring to the disk what was noted so far: a checkpoint must not know more."""
        ...

    def state(self, step: int) -> Mapping[str, Any]:
        """What a checkpoint's manifest says of the data at a step."""
        ...
