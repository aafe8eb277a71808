"""The Ray worker: one process of a Ray Train worker group, and what starts the group."""

import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hstvg.runtime import checkpoint
from hstvg.runtime.errors import CommandError, ConfigError, Stopped
from hstvg.runtime.saved_state import SavedState, write_state

LOG = "progress.log"
"""In the run folder: what workers say, shown by the driver as it grows."""


class RayWorker:
    """This process among the workers that Ray Train started.

    Checkpoints are the run folder's own (see checkpoint.py): Ray Train's are neither atomic nor
    verified, and a torn snapshot of its manager stops the next start.
    """

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        import ray.train
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        device = get_device()
        assert isinstance(device, torch.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # collectives over objects use the current device
        self.device = device
        self.checkpoints = run_dir / "checkpoints"
        self.log = run_dir / LOG
        self.keep = keep
        self.reported: dict[str, float] = {}

    def mean(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values / self.world_size

    def gather(self, items: list[Any]) -> list[Any]:
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def barrier(self) -> None:
        dist.barrier()

    def say(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(line + "\n")

    def report(self, metrics: Mapping[str, float]) -> None:
        # Returned at the end: ray.train.report keeps no metrics that come without a checkpoint.
        self.reported = dict(metrics)

    def resume(self) -> SavedState | None:
        # Rank 0 verifies and decides; the others follow, so that all load the same.
        choice: list[Any] = [checkpoint.newest(self.checkpoints) if self.rank == 0 else None]
        dist.broadcast_object_list(choice, src=0)
        found = choice[0]
        return SavedState(found) if found else None

    def checkpoint(
        self, step: int, facts: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]
    ) -> None:
        with checkpoint.writing(self.checkpoints, step, facts, self, self.keep) as folder:
            write_state(folder, tensors, group=self)


class RayLauncher:
    """Runs the training on a Ray cluster by a TorchTrainer.

    Args:
        num_workers: workers, one GPU each where GPUs are used.
        use_gpu: null uses GPUs if the cluster has enough of them.
        cpus_per_worker: CPUs reserved per worker; null reserves 1 beside a GPU. On CPU the workers
            reserve none by themselves, so that data tasks always find a CPU to run on.
        max_failures: restarts of the worker group, each from the newest checkpoint.
        collective_timeout_s: a peer that is silent for so long counts as dead.
    """

    def __init__(
        self,
        *,
        num_workers: int = 1,
        use_gpu: bool | None = None,
        cpus_per_worker: float | None = None,
        max_failures: int = 3,
        collective_timeout_s: int = 600,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"worker.num_workers={num_workers}: at least one is needed")
        self.num_workers = num_workers
        self.use_gpu = use_gpu
        self.cpus_per_worker = cpus_per_worker
        self.max_failures = max_failures
        self.collective_timeout_s = collective_timeout_s

    def check(self) -> None:
        """Compare what is asked for with what the cluster has.

        Raises:
            ConfigError: the cluster is too small.
        """
        import ray

        from hstvg.runtime.cluster import connect

        connect()
        resources = ray.cluster_resources()
        use_gpu = self._uses_gpu(resources)
        kind = "GPU" if use_gpu else "CPU"
        have, cpus = resources.get(kind, 0), resources.get("CPU", 0)
        if have < self.num_workers:
            raise ConfigError(
                f"worker.num_workers={self.num_workers} needs {self.num_workers} {kind}s and the "
                f"cluster has {have:g}; lower it to {max(int(have), 1)} or add nodes"
            )
        reserved = self._resources(use_gpu).get("CPU", 0) * self.num_workers
        if cpus - reserved < 1:
            raise ConfigError(
                f"{self.num_workers} workers would reserve {reserved:g} of {cpus:g} CPUs and leave "
                "none for data tasks, which would wait for ever; lower worker.cpus_per_worker"
            )

    def launch(self, config: dict[str, Any], run_worker) -> dict[str, float]:
        """Run `run_worker(config, worker, shard)` in every worker; returns rank 0's last report.

        Raises:
            CommandError: the workers failed more often than max_failures allows.
        """
        import ray
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        from hstvg.runtime.cluster import connect

        connect()
        use_gpu = self._uses_gpu(ray.cluster_resources())
        run_dir = Path(config["run_dir"])
        scratch = run_dir / ".ray"  # Ray Train wants a place all nodes share; nothing of it is kept
        trainer = TorchTrainer(
            _train_function,
            train_loop_config={"config": config, "run_worker": run_worker},
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.num_workers,
                use_gpu=use_gpu,
                resources_per_worker=self._resources(use_gpu),
            ),
            torch_config=TorchConfig(timeout_s=self.collective_timeout_s),
            run_config=ray.train.RunConfig(
                name=f"{run_dir.name}-{os.urandom(4).hex()}",
                storage_path=str(scratch),
                failure_config=ray.train.FailureConfig(
                    max_failures=self.max_failures, controller_failure_limit=20
                ),
                worker_runtime_env={"env_vars": _worker_environment()},
            ),
            datasets={"train": _RestOfRun(config, self.num_workers)},
            dataset_config=_data_config(),
        )
        try:
            with _showing(run_dir / LOG):
                ended: dict[str, Any] = trainer.fit().return_value or {}
        except SystemExit as stopped:
            # Ray Train's own answer to Ctrl-C, after it has ended the workers.
            raise KeyboardInterrupt from stopped
        except ray.train.TrainingFailedError as error:
            raise CommandError(_cause(error, run_dir)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if "stopped" in ended:
            raise Stopped(ended["stopped"])
        return ended["held_out"]

    def _uses_gpu(self, resources: Mapping[str, float]) -> bool:
        return resources.get("GPU", 0) >= self.num_workers if self.use_gpu is None else self.use_gpu

    def _resources(self, use_gpu: bool) -> dict[str, float]:
        cpus = self.cpus_per_worker
        if use_gpu:
            return {"GPU": 1, "CPU": 1 if cpus is None else cpus}
        return {"CPU": 0.01 if cpus is None else cpus}


@contextmanager
def _showing(log: Path) -> Iterator[None]:
    """Print what is added to a file while the block runs.

    The run folder is shared by all nodes, so this needs no log forwarding, whose lines would drown
    among those of every worker's libraries.
    """
    log.touch()
    done = threading.Event()

    def follow() -> None:
        with log.open() as file:
            file.seek(0, os.SEEK_END)
            while True:
                last_look = done.wait(0.5)
                for line in file:
                    print(line, end="", flush=True)
                if last_look:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


def _train_function(arguments: dict[str, Any]) -> dict[str, Any]:
    import ray.train

    config = arguments["config"]
    if not torch.cuda.is_available():
        # Workers share the cores of a node; more threads than cores would only fight.
        local = ray.train.get_context().get_local_world_size()
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))
    worker = RayWorker(Path(config["run_dir"]), keep=config["run"]["keep_checkpoints"])
    try:
        arguments["run_worker"](config, worker, ray.train.get_dataset_shard("train"))
    except Stopped as stopped:  # returned, not raised: Ray would start the workers again
        return {"stopped": str(stopped)}
    return {"held_out": worker.reported}


class _RestOfRun:
    """Builds the dataset of what is left to train; Ray calls it at every start of the group."""

    def __init__(self, config: dict[str, Any], num_workers: int) -> None:
        self.config = config
        self.num_workers = num_workers

    def __call__(self):
        from hstvg.runtime.config import DataFacts, RunFacts
        from hstvg.runtime.stream import open_feed, ray_dataset

        run, data = RunFacts(**self.config["run"]), DataFacts(**self.config["data"])
        found = checkpoint.newest(Path(self.config["run_dir"]) / "checkpoints")
        done = checkpoint.read_manifest(found)["step"] if found else 0
        return ray_dataset(open_feed(run, data), run, data, self.num_workers, first_step=done)


def _data_config():
    import ray.data
    import ray.train

    options = ray.data.ExecutionOptions(preserve_order=True)
    return ray.train.DataConfig(datasets_to_split="all", execution_options=options)


def _worker_environment() -> dict[str, str]:
    """What workers need set before they import anything; never a secret (dashboards show it)."""
    return {
        "TOKENIZERS_PARALLELISM": "false",
    }


def _cause(error: Exception, run_dir: Path) -> str:
    """The last worker's own words, in one line, and what to do next."""
    failures = getattr(error, "worker_failures", None) or {}
    inner = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    said = lines[-1] if lines else type(inner).__name__
    return f"training of {run_dir.name} failed: {said}; mend it and run the same command to go on"
