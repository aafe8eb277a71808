"""The whole road without Ray: both stages train, die, resume, sample, are scored and shown."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import wandb
from safetensors.torch import load_file

from hstvg.generate.bundle import load_model
from hstvg.generate.workflow import write_clips
from hstvg.report import write_report
from hstvg.runtime.checkpoint import check, newest, read_manifest
from hstvg.runtime.command import run_command
from hstvg.runtime.config import compose
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.evaluation import evaluate
from hstvg.runtime.index import read_index
from hstvg.runtime.launch import run_training
from hstvg.runtime.sampling import generate
from hstvg.runtime.track_jsonl import read_metrics

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ("worker=local", "worker.threads=1", "engine=torch")
PROMPT = "a red circle moves right"


class KillAt:
    """A mirror of the metrics that kills its process as it hears of a step: no handler runs."""

    def __init__(self, *, at: int, **run: object) -> None:
        self.at = at

    def begin(self, step: int) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def video(self, step: int, name: str, file: Path) -> None: ...

    def close(self) -> None: ...


def kill_at(step: int) -> str:
    return f"tracker.mirror={{_target_:tests.smoke.test_train_local.KillAt,at:{step}}}"


def start(*overrides: str, cwd: Path) -> subprocess.Popen:
    """`python -m pipelines.train`, as a person starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", *overrides],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until `path` is there; a process that ends before is shown."""
    for _ in range(1200):
        if path.exists():
            return
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"{path} never came: {process.communicate()}")


def numbers(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock says."""
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def assert_same_run(run: Path, other: Path) -> None:
    """Losses and exported weights are equal bit for bit."""
    assert numbers(run) == numbers(other)
    first, second = (load_file(r / "export" / "model.safetensors") for r in (run, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def frames_of(file: Path) -> np.ndarray:
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_locally) -> Path:
    """A folder with a finished run of each stage: `tok` and, on top of it, `gen`."""
    root = tmp_path_factory.mktemp("runs")
    run_locally(root, "tok")
    run_locally(root, "gen", "stage=generator", f"tokenizer_run={root / 'tok'}")
    return root


def overrides_of(stage: str, runs: Path) -> list[str]:
    if stage == "tokenizer":
        return []
    return ["stage=generator", f"tokenizer_run={runs / 'tok'}"]


NAMES = {"tokenizer": "tok", "generator": "gen"}


# ---- a run that nothing disturbs --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("tok", ("loss/reconstruction", "loss/codec", "loss/commitment", "val/kl", "val/psnr")),
        ("gen", ("loss/diffusion", "loss/flow", "val/diffusion", "val/flow", "val/skill/flow")),
    ],
)
def test_a_run_folder_holds_what_the_contract_says(runs, name, terms):
    run = runs / name
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["samples"] for line in lines] == [4, 8, 12, 16]
    assert set(terms) <= set(lines[-1])
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    for file in ("config.yaml", "overrides.txt", "env.json", "lineage.json"):
        assert (run / file).stat().st_size
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert checkpoints == ["step_000000002", "step_000000004"]
    assert all(check(run / "checkpoints" / name) is None for name in checkpoints)
    exported = {path.name for path in (run / "export").iterdir()}
    assert exported == {"model.safetensors", "config.json", "README.md"}
    assert {path.suffix for path in (run / "samples").iterdir()} == {".mp4", ".txt"}
    assert not list(run.rglob("*.partial"))


def test_the_total_is_the_weighted_sum_of_its_terms(runs):
    """Each divided by what its trivial predictor scored in the steps before."""
    before: dict[str, list[float]] = {"diffusion": [], "flow": []}
    for line in read_metrics(runs / "gen" / "metrics.jsonl"):
        terms = {
            name: line[f"loss/{name}"] / (sum(scores) / len(scores) if scores else 1)
            for name, scores in before.items()
        }
        total = terms["diffusion"] + 0.1 * terms["flow"]
        assert line["loss"] == pytest.approx(total, rel=1e-6)  # float32 keeps seven digits
        for name, scores in before.items():
            scores.append(line[f"trivial/{name}"])
            skill = 1 - line[f"loss/{name}"] / scores[-1]
            assert line[f"skill/{name}"] == pytest.approx(skill)
    # What the first step said is 0, the trivial guess itself.
    assert read_metrics(runs / "gen" / "metrics.jsonl")[0]["skill/diffusion"] == 0
    manifest = read_manifest(runs / "gen" / "checkpoints" / "step_000000004")
    assert manifest["objective"] == {
        name: {"trivial": pytest.approx(sum(scores) / 4), "steps": 4}
        for name, scores in before.items()
    }


def test_a_look_at_the_trunk_changes_nothing_but_the_log(runs, run_locally, tmp_path):
    more = [*overrides_of("generator", runs), "run.gradients_every=2"]
    run = run_locally(tmp_path, "gen", *more)
    seen = {"gradient/diffusion", "gradient/flow", "cosine/flow"}
    lines = numbers(run)
    assert [seen <= line.keys() for line in lines] == [False, True, False, True]
    assert all(line["gradient/diffusion"] > 0 and line["gradient/flow"] > 0 for line in lines[1::2])
    assert all(-1 <= line["cosine/flow"] <= 1 for line in lines[1::2])
    rest = [{name: v for name, v in line.items() if name not in seen} for line in lines]
    assert rest == numbers(runs / "gen")
    assert "cosine/flow" in write_report(run).read_text()


def test_terms_are_measured_alike_in_any_number_of_micro_batches(runs, run_locally, tmp_path):
    """Normalised losses, skills and what is seen at the trunk."""
    more = [*overrides_of("generator", runs), "run.gradients_every=1"]
    parts, whole = (
        numbers(run_locally(tmp_path / size, "gen", *more, f"run.micro_batch={size}"))
        for size in ("1", "4")
    )
    assert whole[-1]["cosine/flow"] != 0
    for one, other in zip(parts, whole, strict=True):
        # Sums of float32 in another order; a skill near 0 keeps six digits behind the point.
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6), one["step"]


def test_a_model_without_a_trunk_cannot_be_looked_at(run_locally, tmp_path):
    with pytest.raises(ValueError, match=r"run\.gradients_every=2, but this model has no trunk"):
        run_locally(tmp_path, "tok", "run.gradients_every=2")


def test_a_weight_follows_its_schedule(runs, run_locally, tmp_path):
    shares = ["+objective.terms.flow.warmup=0.5", "+objective.terms.flow.decay=0.25"]
    whole = run_locally(tmp_path, "gen", *overrides_of("generator", runs), *shares)
    assert [line["weight/flow"] for line in numbers(whole)] == pytest.approx([0, 0.05, 0.1, 0.1])
    assert not any("weight/diffusion" in line for line in numbers(whole))
    resumed = Path(shutil.copytree(whole, tmp_path / "again" / "gen"))
    shutil.rmtree(resumed / "checkpoints" / "step_000000004")
    run_locally(tmp_path / "again", "gen", *overrides_of("generator", runs), *shares)
    assert_same_run(resumed, whole)


def test_training_moves_the_weights_it_should_and_no_others(runs):
    """Stage 2 leaves the tokenizer as it was; its export brings it along."""
    tokenizer = load_file(runs / "tok" / "export" / "model.safetensors")
    both = load_file(runs / "gen" / "export" / "model.safetensors")
    for name, value in tokenizer.items():
        assert torch.equal(both[name], value)
    assert any(name.startswith("generator.unet.") for name in both)


def test_lineage_names_data_and_tokenizer(runs, shapes_dataset):
    lineage = json.loads((runs / "gen" / "lineage.json").read_text())
    assert lineage["data"]["index"] == read_index(shapes_dataset).hash
    assert lineage["tokenizer"]["run"] == str(runs / "tok")
    assert lineage["tokenizer"]["weights"].startswith("sha256:")


def test_a_latent_is_measured_alike_in_any_number_of_micro_batches(runs, run_locally, tmp_path):
    """What is observed after a step must not depend on who saw which of its clips."""
    whole = run_locally(tmp_path, "tok", "run.micro_batch=4")
    first, second = (load_file(r / "export" / "model.safetensors") for r in (runs / "tok", whole))
    measured = {name for name in first if name.endswith(".value")}
    kinds = ("mean", "square", "codec.variance", "codec.usage")
    assert measured == {f"tokenizer.{kind}.value" for kind in kinds}
    for name in measured:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)
        assert first[name].std() > 0
    entropies = [
        {name: value for name, value in numbers(run)[-1].items() if name.startswith("codes/")}
        for run in (runs / "tok", whole)
    ]
    assert list(entropies[0]) == [f"codes/entropy_{k}_{2**k}x{2**k}x{2**k}" for k in range(3)]
    assert entropies[0] == pytest.approx(entropies[1], abs=0.02)  # a code may fall the other way


# ---- a run that dies --------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_killed_and_resumed_equals_undisturbed(stage, runs, run_locally, compose_run, tmp_path):
    name, more = NAMES[stage], overrides_of(stage, runs)
    # After the line of step 3 and before the checkpoint of step 4.
    _, overrides = compose_run(tmp_path, name, *LOCAL, *more, kill_at(3))
    process = start(*overrides, cwd=tmp_path)
    said = process.communicate(timeout=120)
    run = tmp_path / name
    assert process.returncode == -signal.SIGKILL, said
    assert [line["step"] for line in numbers(run)] == [1, 2, 3]
    assert newest(run / "checkpoints") == run / "checkpoints" / "step_000000002"
    run_locally(tmp_path, name, *more)
    assert_same_run(run, runs / name)


def test_ctrl_c_says_that_the_run_can_go_on_and_it_does(runs, run_locally, compose_run, tmp_path):
    _, overrides = compose_run(tmp_path, "tok", *LOCAL, "run.steps=1000000")
    process = start(*overrides, cwd=tmp_path)
    wait_for(tmp_path / "tok" / "checkpoints" / "step_000000002", process)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 75, complaint
    assert complaint.strip() == "error: interrupted; run the same command again to go on"

    found = newest(tmp_path / "tok" / "checkpoints")
    assert found is not None
    done = int(found.name.removeprefix("step_"))
    run_locally(tmp_path, "tok", f"run.steps={done + 2}")
    assert [line["step"] for line in numbers(tmp_path / "tok")] == list(range(1, done + 3))


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(runs, run_locally, tmp_path):
    run = Path(shutil.copytree(runs / "tok", tmp_path / "tok"))
    state = run / "checkpoints" / "step_000000004" / "state_rank00000.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    run_locally(tmp_path, "tok")
    assert_same_run(run, runs / "tok")
    assert (run / "checkpoints" / "step_000000004.corrupt").is_dir()


def test_the_command_of_a_finished_run_changes_nothing(runs, run_locally, tmp_path):
    run = Path(shutil.copytree(runs / "tok", tmp_path / "tok"))
    run_locally(tmp_path, "tok")
    assert_same_run(run, runs / "tok")


@pytest.mark.parametrize("name", NAMES.values())
def test_a_run_killed_before_its_last_export_exports_when_asked_again(
    name, runs, run_locally, tmp_path
):
    """The checkpoint of the last step is on disk, and of the export only half a file."""
    run = Path(shutil.copytree(runs / name, tmp_path / name))
    (run / "export" / "model.safetensors").write_bytes(b"half")
    stage = "generator" if name == "gen" else "tokenizer"
    run_locally(tmp_path, name, *overrides_of(stage, runs))
    assert_same_run(run, runs / name)


def test_a_longer_run_goes_on_from_a_finished_one(runs, run_locally, tmp_path):
    run = Path(shutil.copytree(runs / "tok", tmp_path / "tok"))
    run_locally(tmp_path, "tok", "run.steps=6")
    assert [line["step"] for line in numbers(run)] == [1, 2, 3, 4, 5, 6]
    assert numbers(run)[:4] == numbers(runs / "tok")


def test_dropout_goes_on_as_if_nothing_had_happened(runs, run_locally, tmp_path):
    more = [*overrides_of("generator", runs), "generator.text.dropout=0.2"]
    whole = run_locally(tmp_path, "gen", *more)
    assert numbers(whole)[-1]["loss"] != numbers(runs / "gen")[-1]["loss"]
    resumed = Path(shutil.copytree(whole, tmp_path / "again" / "gen"))
    shutil.rmtree(resumed / "checkpoints" / "step_000000004")
    run_locally(tmp_path / "again", "gen", *more)
    assert_same_run(resumed, whole)


# ---- the same name, another run ---------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=1",
        "run.global_batch=8",
        "optimizer.lr=0.5",
        "tokenizer.base=16",
        "objective.terms.kl.weight=0.5",
        "data.fps=4",
    ],
)
def test_other_settings_for_the_same_name_are_refused(override, runs, compose_run):
    before = (runs / "tok" / "config.yaml").read_bytes()
    key = override.split("=")[0]
    with pytest.raises(ConfigError, match=f"{key} was .*, now") as caught:
        run_training(*compose_run(runs, "tok", *LOCAL, override))
    assert caught.value.exit_code == 2
    assert (runs / "tok" / "config.yaml").read_bytes() == before


def test_the_command_says_so_with_exit_code_2(runs, compose_run, monkeypatch, capsys):
    from pipelines import train

    _, overrides = compose_run(runs, "tok", *LOCAL, "run.seed=1")
    monkeypatch.setattr(sys, "argv", ["pipelines.train", *overrides])
    with pytest.raises(SystemExit) as caught:
        run_command("train", train.__doc__, train.main)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.seed was 0, now 1" in line


# ---- what a run is good for -------------------------------------------------------------------


def test_a_prompt_becomes_a_video(runs, tmp_path):
    options = [f"run={runs / 'gen'}", f'prompt="{PROMPT}"', "steps=2"]
    for name, more in {"a": [], "b": [], "c": ["seed=1"], "d": ["duration_s=0.5"]}.items():
        file = tmp_path / f"{name}.mp4"
        assert generate(compose("generate", [*options, *more, f"out={file}"])) == [file]
    assert frames_of(tmp_path / "a.mp4").shape == (8, 16, 16, 3)
    assert frames_of(tmp_path / "d.mp4").shape == (4, 16, 16, 3)
    written = {name: (tmp_path / f"{name}.mp4").read_bytes() for name in "abc"}
    assert written["a"] == written["b"]
    assert written["a"] != written["c"]


def test_a_denoiser_writes_on_from_block_to_block(runs, tmp_path):
    long, on = tmp_path / "long.mp4", tmp_path / "on.mp4"
    options = [f"run={runs / 'gen'}", f'prompt="{PROMPT}"', "steps=2", "duration_s=2.25"]
    generate(compose("generate", [*options, f"out={long}"]))
    generate(compose("generate", [*options, f"out={on}", f"given={long}", "duration_s=3"]))
    assert frames_of(long).shape == (18, 16, 16, 3)
    assert frames_of(on).shape == (24, 16, 16, 3)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("kappa=1", "writes 0 scales"),
        ("motion_noise=0.5", r"trained with \+noise=motion"),
        ("style_guidance=3", "weighs a reference; give style_reference=FILE"),
    ],
)
def test_what_a_denoiser_was_not_trained_for_is_refused(override, said, runs, tmp_path):
    file = tmp_path / "no.mp4"
    with pytest.raises(ConfigError, match=said):
        generate(compose("generate", [f"run={runs / 'gen'}", "prompt=a", f"out={file}", override]))
    assert not file.exists()


def test_a_file_of_prompts_becomes_a_folder_of_videos(runs, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\na blue square moves up\n")
    out = tmp_path / "videos"
    generate(
        compose("generate", [f"run={runs / 'gen'}", f"prompts={prompts}", f"out={out}", "steps=2"])
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "0000.mp4",
        "0000.txt",
        "0001.mp4",
        "0001.txt",
    ]
    assert (out / "0001.txt").read_text() == "a blue square moves up\n"


def test_the_export_writes_the_same_clip_without_ray_or_hydra(runs, tmp_path):
    code = (
        "import sys, numpy\n"
        "from hstvg.generate.bundle import load_model\n"
        "from hstvg.generate.workflow import write_clips\n"
        f"model = load_model({str(runs / 'gen' / 'export')!r})\n"
        f"numpy.save({str(tmp_path / 'clip.npy')!r}, write_clips(model, [{PROMPT!r}], seed=3))\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not {"ray", "hydra", "omegaconf", "deepspeed", "wandb"} & set(done.stdout.split())
    model = load_model(runs / "gen" / "export")
    (clip,) = write_clips(model, [PROMPT], seed=3)
    # Whole grey levels; another number of threads may round a sum of float32 the other way.
    difference = np.load(tmp_path / "clip.npy")[0].astype(int) - clip
    assert np.abs(difference).max() <= 1


def test_a_run_is_scored_and_shown(runs, shapes_dataset, tmp_path):
    run = Path(shutil.copytree(runs / "gen", tmp_path / "gen"))
    options = ["num_clips=4", "num_rows=2", "steps=2", f"data.path={shapes_dataset}"]
    scores = evaluate(compose("evaluate", [f"run={run}", *options]))
    assert json.loads((run / "eval" / "metrics.json").read_text()) == scores
    assert scores["tokenizer"]["psnr"]["n"] == scores["num_clips"]
    for rows in scores["control"].values():
        assert set(rows) == {"generated", "real", "shuffled", "frozen"}
        for estimate in (estimate for row in rows.values() for estimate in row.values()):
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    page = write_report(run)
    assert page == run / "report.html"
    text = page.read_text()
    assert "data:video/mp4" in text
    assert "loss/flow" in text


def test_a_tokenizers_run_is_scored_too_but_generates_nothing(runs, shapes_dataset, tmp_path):
    options = ["num_clips=2", f"data.path={shapes_dataset}", f"out={tmp_path / 'eval'}"]
    scores = evaluate(compose("evaluate", [f"run={runs / 'tok'}", *options]))
    assert set(scores["tokenizer"]) >= {"psnr", "ssim"}
    assert "control" not in scores
    with pytest.raises(ConfigError, match="stage=generator"):
        generate(
            compose("generate", [f"run={runs / 'tok'}", "prompt=x", f"out={tmp_path / 'a.mp4'}"])
        )


def test_a_run_is_mirrored_to_wandb_without_a_key(run_locally, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    run = run_locally(tmp_path, "tok", "tracker=wandb", "run.steps=2")
    wandb.teardown()  # its service may still be writing
    (folder,) = (run / "wandb").glob("offline-run-*-tok")
    for _ in range(100):
        if files := list(folder.glob("*.wandb")):
            break
        time.sleep(0.2)
    assert b"loss/reconstruction" in files[0].read_bytes()
    assert len(list(folder.rglob("*.mp4"))) == 1


# ---- somebody's own footage -------------------------------------------------------------------


def write_odd_video(path: Path, *, width: int, height: int, fps: int, num_frames: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if (width | height) % 2 else "yuv420p"
        for number in range(num_frames):
            ramp = (np.arange(width)[None, :, None] * 4 + 9 * number) % 256
            image = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.ray
def test_a_folder_of_odd_videos_trains_both_stages(ray_cluster, run_locally, tmp_path):
    from hstvg.runtime.config import build
    from hstvg.runtime.ingest import ingest

    folder = tmp_path / "my videos"
    sizes = [(48, 32, 12, 12), (37, 51, 24, 30), (320, 90, 25, 60), (64, 64, 5, 7), (20, 20, 8, 3)]
    for number, (width, height, fps, num_frames) in enumerate(sizes):
        file = folder / f"clip {number}.mp4"
        write_odd_video(file, width=width, height=height, fps=fps, num_frames=num_frames)
        file.with_suffix(".txt").write_text(f"a grey ramp, number {number}")
    write_odd_video(folder / "silent.mp4", width=32, height=32, fps=8, num_frames=16)
    cut = folder / "cut.mp4"
    write_odd_video(cut, width=32, height=32, fps=8, num_frames=60)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    cut.with_suffix(".txt").write_text("cut short")

    data = tmp_path / "data"
    config = compose("prepare", ["source=folder", f'source.path="{folder}"', f"out={data}"])
    summary = ingest(build(config["source"]), data, config["clips_per_shard"])
    assert summary.num_clips == len(sizes)
    assert summary.refused == {"no caption": 1, "unreadable": 1}

    given = f"data.path={data}"
    tokenizer = run_locally(tmp_path, "tok", given, "run.steps=3")
    run = run_locally(
        tmp_path, "gen", given, "stage=generator", "run.steps=3", f"tokenizer_run={tokenizer}"
    )
    assert [line["step"] for line in numbers(run)] == [1, 2, 3]
    assert all(np.isfinite(list(line.values())).all() for line in numbers(run))
    out = tmp_path / "out.mp4"
    generate(compose("generate", [f"run={run}", "prompt=a grey ramp", f"out={out}", "steps=2"]))
    assert len(frames_of(out)) == 8
