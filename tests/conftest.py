"""Fixtures of the whole suite."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Read by Ray and DeepSpeed at import, in this process and in all that it starts.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["DS_ACCELERATOR"] = "cpu"
# How often Ray Train looks after its workers; its own 2 s suit runs of hours.
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
# Tensors are tiny here: threads on shared cores would spend the time waiting for one another.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[1]

TINY = (
    "run.steps=4",
    "run.global_batch=4",
    "run.micro_batch=2",
    "run.checkpoint_every=2",
    "run.validate_every=2",
    "run.validate_clips=4",
    "run.sample_clips=1",
    "run.log_every=1",
    "data.num_frames=8",
    "data.height=16",
    "data.width=16",
    "optimizer.warmup_steps=2",
    "tokenizer.channels=4",
    "tokenizer.base=8",
)
TINY_TEXT = (
    "generator.text.width=32",
    "generator.text.layers=1",
    "generator.text.heads=2",
)
TINY_GENERATOR = {
    "generator=hst": (
        *TINY_TEXT,
        "generator.head_dim=16",
        "generator.widths=[16,32]",
        "generator.window=2",
        "generator.draws=[1,1]",
    ),
    "generator=next_scale": (
        *TINY_TEXT,
        "generator.head_dim=16",
        "generator.width=32",
        "generator.depth=1",
    ),
    "generator=joint": (
        *TINY_TEXT,
        "generator.kappa=1",
        "generator.transformer.head_dim=16",
        "generator.transformer.width=32",
        "generator.transformer.depth=1",
        "generator.denoiser.head_dim=16",
        "generator.denoiser.widths=[16,32]",
        "generator.denoiser.window=2",
        "generator.denoiser.draws=[1,1]",
    ),
}
"""Sizes at which a step takes milliseconds, and so few clips that every path is walked."""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One private Ray for all tests marked `ray`; its four CPUs may be more than the machine has.

    Never `ray stop` in a test: it ends every Ray process of the user.
    """
    import ray

    # Workers must find the packages of this checkout, wherever pytest was started.
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=512 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def odd_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Name -> file and verdict of every kind of odd or broken video; leave the files as they are.

    A verdict is a `footage.Good`, what it becomes, or a `footage.Bad`, why it is refused.
    """
    from footage import make_odd_videos

    return make_odd_videos(tmp_path_factory.mktemp("odd_videos"))


@pytest.fixture(scope="session")
def shapes_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 clips of one shape each in two shards, written in this process."""
    from hstvg.runtime.index import write_index
    from hstvg.runtime.shard import write_shard
    from hstvg.runtime.source import ShapeSource

    folder = tmp_path_factory.mktemp("data") / "shapes"
    (folder / "shards").mkdir(parents=True)
    source = ShapeSource(num_clips=96, max_shapes=1, camera_fraction=0.0, style_fraction=0.0)
    items = source.items()
    rows = []
    for number, part in enumerate((items[:48], items[48:])):
        path = folder / "shards" / f"{number:06d}.tar"
        rows += write_shard(path, (source.sample(item) for item in part))
    write_index(folder, rows)
    return folder


ComposedRun = tuple[dict[str, Any], list[str]]


@pytest.fixture(scope="session")
def compose_run(shapes_dataset: Path) -> Callable[..., ComposedRun]:
    """Makes the arguments of `run_training` for a tiny run on `shapes_dataset`.

    compose_run(folder_of_runs, name, *overrides) -> (config, overrides), of which the later of two
    for one key holds; `python -m pipelines.train` takes the same overrides.
    """
    from hstvg.runtime.config import compose

    def composed(root: Path, name: str, *overrides: str) -> ComposedRun:
        sizes = list(TINY)
        if "stage=generator" in overrides:
            kind = next((kind for kind in TINY_GENERATOR if kind in overrides), "generator=hst")
            sizes += TINY_GENERATOR[kind]
        given = [f"data.path={shapes_dataset}", f"run.root={root}", f"run.name={name}"]
        chosen: dict[str, str] = {}
        for override in [*sizes, *given, *overrides]:
            chosen[override.split("=")[0]] = override
        everything = list(chosen.values())
        return compose("train", everything), everything

    return composed


LOCAL = ("worker=local", "worker.threads=1", "engine=torch")


@pytest.fixture(scope="session")
def run_locally(compose_run: Callable[..., ComposedRun]) -> Callable[..., Path]:
    """Trains a tiny run in this process: run_locally(folder_of_runs, name, *overrides) -> run."""
    import torch

    from hstvg.runtime.launch import run_training

    def run(root: Path, name: str, *overrides: str) -> Path:
        threads = torch.get_num_threads()
        try:
            run_training(*compose_run(root, name, *LOCAL, *overrides))
        finally:
            torch.set_num_threads(threads)
        return root / name

    return run
