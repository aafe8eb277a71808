"""The local worker: one plain process, no Ray."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hstvg.runtime import checkpoint
from hstvg.runtime.saved_state import SavedState, write_state


class LocalWorker:
    """Rank 0 of 1.

    Args:
        run_dir: the run folder.
        keep: newest checkpoints to keep.
    """

    rank = 0
    world_size = 1

    def __init__(self, run_dir: Path, *, device: torch.device, keep: int) -> None:
        self.checkpoints = run_dir / "checkpoints"
        self.device = device
        self.keep = keep
        self.reported: dict[str, float] = {}

    def mean(self, values: Tensor) -> Tensor:
        return values

    def gather(self, items: list[Any]) -> list[Any]:
        return items

    def barrier(self) -> None: ...

    def say(self, line: str) -> None:
        print(line, flush=True)

    def report(self, metrics: Mapping[str, float]) -> None:
        self.reported = dict(metrics)

    def resume(self) -> SavedState | None:
        found = checkpoint.newest(self.checkpoints)
        return SavedState(found) if found else None

    def checkpoint(
        self, step: int, facts: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]
    ) -> None:
        with checkpoint.writing(self.checkpoints, step, facts, self, self.keep) as folder:
            write_state(folder, tensors, group=self)


class LocalLauncher:
    """Runs the training in this process: for tests, debuggers and notebooks.

    Args:
        device: "auto" takes a GPU where there is one.
        threads: torch threads; None leaves torch's choice.
    """

    num_workers = 1

    def __init__(self, *, device: str = "auto", threads: int | None = None) -> None:
        self.device = device
        self.threads = threads

    def check(self) -> None:
        """Nothing to check: this process is there."""

    def launch(self, config: dict[str, Any], run_worker) -> dict[str, float]:
        """Run `run_worker(config, worker, shard)` here; returns what the worker reported."""
        if self.threads:
            torch.set_num_threads(self.threads)
        worker = LocalWorker(
            Path(config["run_dir"]),
            device=pick_device(self.device),
            keep=config["run"]["keep_checkpoints"],
        )
        run_worker(config, worker, None)
        return worker.reported


def pick_device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
