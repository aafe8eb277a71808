"""Training on Ray: every engine takes the same steps, a killed worker costs few, sweeps finish."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hstvg.runtime.checkpoint import check, newest
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.launch import run_training
from hstvg.runtime.track_jsonl import read_metrics

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6

ENGINES = {
    "torch": ("engine=torch", "worker.num_workers=2"),
    "torch-in-parts": ("engine=torch", "worker.num_workers=2", "run.micro_batch=1"),
    "zero-1-in-parts": ("engine.zero_stage=1", "worker.num_workers=2", "run.micro_batch=1"),
    "zero-2": ("engine.zero_stage=2", "worker.num_workers=2"),
    "zero-3": ("engine.zero_stage=3", "worker.num_workers=2"),
    "one-worker": ("engine.zero_stage=2", "worker.num_workers=1"),
}
"""A global batch of 4, of which two workers take 2 each, at once or in two parts, or one takes all
in two parts."""

JOINT = (
    "generator=joint",
    "+term=[attention,refinement]",
    "objective.terms.flow.weight=0",
    "generator.denoiser.checkpointing=true",
)

TOLERANCE = 1e-5
"""Relative. float32 keeps 7 digits; the engines add gradients up in other orders, and over six
steps Adam, which divides a gradient by its own size, carries that into the digits before."""
NEAR_ZERO = 1e-6
"""Absolute. The skill of a young model is 1 minus a ratio near 1, which keeps 6 digits."""


class KillOnce:
    """A mirror of the metrics that kills its worker as it hears of a step, the first time only."""

    def __init__(self, *, at: int, run_dir: Path, **run: object) -> None:
        self.at = at
        self.mark = run_dir / "killed"

    def begin(self, step: int) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.at and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def video(self, step: int, name: str, file: Path) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def arguments(root, compose_run, run_locally) -> Callable[..., tuple]:
    """Makes the arguments of `run_training` for stage 2 on a tokenizer trained before."""
    run_locally(root, "tok", "run.steps=2")

    def composed(name: str, *overrides: str) -> tuple:
        facts = (f"run.steps={STEPS}", "run.checkpoint_every=3", "run.validate_every=3")
        clip = "optimizer.clip_norm=0.2"  # so low that every step is clipped
        stage = ("stage=generator", f"tokenizer_run={root / 'tok'}")
        return compose_run(root, name, *stage, *facts, clip, *overrides)

    return composed


@pytest.fixture(scope="module")
def run_of(root, arguments, ray_cluster) -> Callable[[str], Path]:
    """Trains a run of an engine once, when it is first asked for."""
    done: dict[str, Path] = {}

    def trained(engine: str) -> Path:
        if engine not in done:
            run_training(*arguments(engine, *ENGINES[engine]))
            done[engine] = root / engine
        return done[engine]

    return trained


def numbers(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock says."""
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def checkpoint_of(run: Path, step: int = STEPS) -> Path:
    return run / "checkpoints" / f"step_{step:09d}"


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    parts = [load_file(file) for file in checkpoint.glob("*.safetensors")]
    return {name: value for part in parts for name, value in part.items()}


def join_cluster() -> dict[str, str]:
    """The environment in which a command finds the tests' own cluster."""
    import ray

    address = ray.get_runtime_context().gcs_address
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}


# ---- the same run, whoever spreads it ---------------------------------------------------------


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "torch"])
def test_every_engine_takes_the_same_steps(engine, run_of):
    want, got = numbers(run_of("torch")), numbers(run_of(engine))
    assert min(line["grad_norm"] for line in want) > 0.2
    assert [line["step"] for line in got] == list(range(1, STEPS + 1))
    for one, other in zip(got, want, strict=True):
        assert one == pytest.approx(other, rel=TOLERANCE, abs=NEAR_ZERO), one["step"]


LOOKS = ("torch-in-parts", "zero-1-in-parts", "one-worker")


def test_the_terms_pull_at_the_trunk_alike_for_any_number_of_workers(root, arguments, ray_cluster):
    for engine in LOOKS:
        run_training(*arguments(f"looks-{engine}", *ENGINES[engine], "run.gradients_every=2"))
    want, *others = [numbers(root / f"looks-{engine}")[1::2] for engine in LOOKS]
    for line in want:
        assert line["gradient/diffusion"] > 0
        assert 0 < abs(line["cosine/flow"]) < 1
    for got in others:
        for one, other in zip(got, want, strict=True):
            assert one == pytest.approx(other, rel=TOLERANCE, abs=NEAR_ZERO), one["step"]


@pytest.mark.parametrize("engine", ["zero-1-in-parts", "zero-2", "zero-3"])
def test_every_engine_exports_the_same_average(engine, run_of):
    """Under ZeRO 3 each rank averages its own part of the weights; the export is whole."""
    want, got = (
        load_file(run_of(name) / "export" / "model.safetensors") for name in ("torch", engine)
    )
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert_same_weights(value, want[name], name)


@pytest.mark.parametrize(("engine", "ranks"), [("torch", 2), ("zero-3", 2), ("one-worker", 1)])
def test_a_checkpoint_is_dealt_out_over_the_ranks(engine, ranks, run_of):
    last = run_of(engine) / "checkpoints" / f"step_{STEPS:09d}"
    assert check(last) is None
    manifest = json.loads((last / "manifest.json").read_text())
    assert manifest["world_size"] == ranks
    assert set(manifest["files"]) == {f"state_rank{rank:05d}.safetensors" for rank in range(ranks)}
    sizes = [(last / name).stat().st_size for name in manifest["files"]]
    assert max(sizes) < 1.1 * min(sizes)
    assert tensors_of(last).keys() == tensors_of(checkpoint_of(run_of("torch"))).keys()


ELSEWHERE = {
    "zero-1-in-parts": ("worker=local", "worker.threads=1", "engine=torch"),
    "zero-2": ("engine.zero_stage=3", "worker.num_workers=4", "run.micro_batch=1"),
    "zero-3": ("engine.zero_stage=2", "worker.num_workers=1"),
}
"""By the engine that a run begins on: how it goes on."""


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_a_run_goes_on_elsewhere(engine, root, run_of, arguments):
    """On other workers, another engine, in other micro-batches."""
    run = Path(shutil.copytree(run_of(engine), root / "elsewhere" / engine))
    shutil.rmtree(checkpoint_of(run))
    run_training(*arguments(engine, *ELSEWHERE[engine], f"run.root={run.parent}"))
    want, got = numbers(run_of("torch")), numbers(run)
    assert [line["step"] for line in got] == list(range(1, STEPS + 1))
    for one, other in zip(got, want, strict=True):
        assert one == pytest.approx(other, rel=TOLERANCE, abs=NEAR_ZERO), one["step"]
    want = tensors_of(checkpoint_of(run_of("torch")))
    for key, value in tensors_of(checkpoint_of(run)).items():
        assert_same_weights(value, want[key], key)


def assert_same_weights(got, want, name):
    """Of weights around 0.1 that took steps of up to 2e-3.

    Adam turns a gradient of almost 0, whose sign is noise, into a step like any other: a few
    elements may be further apart than the rest, though by far less than a step.
    """
    torch.testing.assert_close(got, want, rtol=TOLERANCE, atol=1e-4, msg=name)
    apart = (got - want).abs() > 1e-5 + TOLERANCE * want.abs()
    assert apart.float().mean() < 0.01, name


@pytest.mark.parametrize("head", ["codes", "flow"])
def test_the_next_scale_generator_takes_the_same_steps_under_zero_3(
    head, root, ray_cluster, arguments
):
    facts = ("generator=next_scale", f"generator.head={head}", "generator.checkpointing=true")
    local = ("worker=local", "worker.threads=1", "engine=torch", "run.micro_batch=4")
    run_training(*arguments(f"{head}-one", *facts, *local))
    run_training(*arguments(f"{head}-zero-3", *facts, *ENGINES["zero-3"]))
    one, two = (numbers(root / f"{head}-{name}") for name in ("one", "zero-3"))
    assert len(one) == STEPS
    for want, got in zip(one, two, strict=True):
        assert got == pytest.approx(want, rel=TOLERANCE, abs=NEAR_ZERO), want["step"]


@pytest.fixture(scope="module")
def joint_of_one(root, arguments) -> list[dict]:
    local = ("worker=local", "worker.threads=1", "engine=torch", "run.micro_batch=4")
    run_training(*arguments("joint-one", *JOINT, *local))
    return numbers(root / "joint-one")


@pytest.mark.parametrize("engine", ["zero-1-in-parts", "zero-2", "zero-3"])
def test_the_joint_generator_takes_the_same_steps_under_zero(
    engine, root, ray_cluster, arguments, joint_of_one
):
    """All terms together, one of them without weight: no parameter is left out at any time."""
    run_training(*arguments(f"joint-{engine}", *JOINT, *ENGINES[engine]))
    found = numbers(root / f"joint-{engine}")
    assert len(found) == STEPS
    for want, got in zip(joint_of_one, found, strict=True):
        assert got == pytest.approx(want, rel=TOLERANCE, abs=NEAR_ZERO), want["step"]


def test_dropout_is_the_same_for_any_number_of_workers(root, ray_cluster, arguments):
    drops = ("engine=torch", "run.micro_batch=2", "generator.text.dropout=0.2")
    run_training(*arguments("drops-two", *drops, "worker.num_workers=2"))
    run_training(*arguments("drops-one", *drops, "worker=local", "worker.threads=1"))
    for one, other in zip(numbers(root / "drops-one"), numbers(root / "drops-two"), strict=True):
        assert one == pytest.approx(other, rel=TOLERANCE, abs=NEAR_ZERO), one["step"]


def test_nothing_of_ray_is_left_in_the_run_folder(run_of):
    left = {path.name for path in run_of("torch").iterdir()}
    assert "ray" not in left
    assert ".ray" not in left


# ---- what goes wrong --------------------------------------------------------------------------


def test_a_killed_worker_costs_the_steps_since_the_checkpoint(root, arguments, ray_cluster):
    """Bit for bit, with noise, dropped captions and dropout."""
    facts = (*ENGINES["zero-2"], "generator.text.dropout=0.2")
    run_training(*arguments("undisturbed", *facts))
    undisturbed = root / "undisturbed"
    mirror = f"tracker.mirror={{_target_:tests.cluster.test_ray_train.KillOnce,at:{STEPS - 1}}}"
    run_training(*arguments("killed", *facts, mirror))
    assert (root / "killed" / "killed").exists()
    assert numbers(root / "killed") == numbers(undisturbed)
    first, second = (
        load_file(run / "export" / "model.safetensors") for run in (root / "killed", undisturbed)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_command_of_a_finished_run_changes_nothing(run_of, arguments):
    run = run_of("torch")
    before = numbers(run)
    held_out = run_training(*arguments("torch", *ENGINES["torch"]))
    assert numbers(run) == before
    assert {"val/diffusion", "val/flow"} < held_out.keys()
    assert held_out == {key: value for key, value in before[-1].items() if key.startswith("val/")}


def test_ctrl_c_ends_the_workers_and_the_run_can_go_on(root, ray_cluster, arguments):
    _, overrides = arguments("stopped", *ENGINES["torch"], "run.steps=1000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", *overrides],
        cwd=ROOT,
        env=join_cluster(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = root / "stopped" / "checkpoints" / "step_000000003"
    for _ in range(1200):
        if first.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 75, complaint
    last = complaint.strip().splitlines()[-1]
    assert last == "error: interrupted; run the same command again to go on"
    assert newest(root / "stopped" / "checkpoints") is not None
    # Nobody trains on: the metrics stay as they are.
    steps = len(numbers(root / "stopped"))
    time.sleep(1)
    assert len(numbers(root / "stopped")) == steps


def test_more_workers_than_the_cluster_has_are_refused(root, ray_cluster, arguments):
    overrides = ("worker.num_workers=32", "run.global_batch=64")
    with pytest.raises(ConfigError, match="needs 32 CPUs") as caught:
        run_training(*arguments("crowd", *overrides))
    assert "lower it to 4" in str(caught.value)
    assert not (root / "crowd").exists()


# ---- sweeps -----------------------------------------------------------------------------------


def test_a_sweep_runs_every_trial_and_says_how_to_repeat_it(root, ray_cluster, arguments):
    _, overrides = arguments("sweep", "engine=torch", "run.steps=2")
    # Relative, as a person types them; a trial runs in another folder than the command.
    here = os.path.relpath(root, ROOT)
    overrides = [item.replace(f"={root}", f"={here}") for item in overrides]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.sweep", *overrides, "sweep.num_trials=3"],
        cwd=ROOT,
        env=join_cluster(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((root / "sweep" / "trials.json").read_text())
    assert record["metric"] == "val/diffusion"
    weights = []
    for trial in record["trials"]:
        assert trial["error"] is None
        (override,) = trial["overrides"]
        key, weight = override.split("=")
        assert key == "objective.terms.flow.weight"
        weights.append(float(weight))
        run = root / "sweep" / trial["name"]
        assert [line["step"] for line in numbers(run)] == [1, 2]
        assert trial["value"] == numbers(run)[-1]["val/diffusion"]
        # Any trial is an ordinary run that can be repeated by itself.
        assert override in (run / "overrides.txt").read_text().splitlines()
        assert override in done.stdout
    assert weights[0] == 0.1  # the status quo comes first
    assert len(set(weights)) == 3
    assert all(0.01 <= weight <= 1 for weight in weights)
