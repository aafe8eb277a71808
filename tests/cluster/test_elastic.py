"""A run that is killed and goes on with more or fewer workers trains what it would have anyway."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from hstvg.runtime.errors import CommandError
from hstvg.runtime.launch import run_training
from hstvg.runtime.order import audit, read_records
from hstvg.runtime.track_jsonl import read_metrics

pytestmark = pytest.mark.ray

STEPS = 18
SIZES = ("run.global_batch=8", "run.micro_batch=2", f"run.steps={STEPS}")
FACTS = (*SIZES, "run.checkpoint_every=3", "run.validate_every=18", "run.log_samples=true")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def train(root, compose_run, ray_cluster) -> Callable[..., Path]:
    def run(name: str, workers: int, *overrides: str) -> Path:
        given = (*FACTS, f"worker.num_workers={workers}", *overrides)
        run_training(*compose_run(root, name, *given))
        return root / name

    return run


def batches(run: Path) -> list[list[str]]:
    """The keys of every global batch, in the order of their positions."""
    steps: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for file in (run / "order").glob("*.jsonl"):
        for record in read_records(file):
            steps[record["step"]].append((record["position"], record["key"]))
    return [[key for _, key in sorted(steps[step])] for step in sorted(steps)]


def kill_at(step: int) -> tuple[str, str]:
    mirror = f"{{_target_:tests.cluster.test_ray_train.KillOnce,at:{step}}}"
    return f"tracker.mirror={mirror}", "worker.max_failures=0"


def test_killed_twice_on_other_numbers_of_workers_nothing_is_lost_or_repeated(
    root, train, run_locally
):
    """7 steps on 2 workers, 5 on 1, the rest on 4; checkpoints fall on neither of the kills."""
    seed = "run.seed=7"
    with pytest.raises(CommandError):
        train("killed", 2, seed, *kill_at(8))
    (root / "killed" / "killed").unlink()  # the mark of the first kill
    with pytest.raises(CommandError):
        train("killed", 1, seed, *kill_at(13))
    run = train("killed", 4, seed)
    assert f"passed: {STEPS} steps, {8 * STEPS} positions" in audit(run)

    alone = run_locally(root, "alone", *FACTS, seed)
    together = [train(f"together-{workers}", workers, seed) for workers in (2, 4)]
    for other in (alone, *together):
        assert batches(run) == batches(other), seed
        assert audit(other)
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl")]
    assert losses == pytest.approx(
        [line["loss"] for line in read_metrics(alone / "metrics.jsonl")], rel=1e-4
    )
