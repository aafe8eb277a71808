"""metrics.jsonl is the truth; Weights & Biases mirrors it and can never stop a run."""

import json
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import pytest
import wandb

from hstvg.data.video import encode_video
from hstvg.runtime.track_jsonl import JsonlTracker, SilentTracker, read_metrics
from hstvg.runtime.track_wandb import WandbTracker
from hstvg.train.ports import Tracker


class Notebook:
    """A mirror that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def begin(self, step: int) -> None:
        self.told.append(("begin", step))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append(("scalars", step, dict(values)))

    def video(self, step: int, name: str, file: Path) -> None:
        self.told.append(("video", step, name, file.read_bytes()))

    def close(self) -> None:
        self.told.append(("close",))


class Failing:
    """A mirror whose far end is down, from the first call on."""

    def begin(self, step: int) -> None:
        raise ConnectionError("nobody there")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("nobody there")

    def video(self, step: int, name: str, file: Path) -> None:
        raise ConnectionError("nobody there")

    def close(self) -> None:
        raise ConnectionError("nobody there")


@pytest.fixture
def clip(tmp_path) -> Path:
    """A real MP4 of a square that moves, with its prompt beside it."""
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[8:20, 2 * number : 2 * number + 12] = 200
    file = tmp_path / "made" / "clip.mp4"
    file.parent.mkdir()
    file.write_bytes(encode_video(frames, 8.0))
    file.with_suffix(".txt").write_text("a white square moves right\n")
    return file


def log(folder: Path, begin: int, *steps: int) -> None:
    """What a run does that goes on from `begin`."""
    tracker = JsonlTracker(folder)
    tracker.begin(begin)
    for step in steps:
        tracker.scalars(step, {"loss": 1 / step, "lr": 1e-3})
    tracker.close()


def steps_of(folder: Path) -> list[float]:
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl")]


def test_trackers_are_trackers():
    assert isinstance(JsonlTracker(Path()), Tracker)
    assert isinstance(SilentTracker(), Tracker)
    assert isinstance(Failing(), Tracker)


# ---- metrics.jsonl ----------------------------------------------------------------------------


def test_a_line_per_step_with_its_values(tmp_path):
    log(tmp_path, 0, 1, 2, 3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"step": 2, "loss": 0.5, "lr": 0.001}
    assert steps_of(tmp_path) == [1, 2, 3]


def test_a_line_is_on_disk_when_its_step_is_over(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.begin(0)
    tracker.scalars(1, {"loss": 1.0})
    assert steps_of(tmp_path) == [1]
    tracker.close()


def test_values_come_back_exactly(tmp_path):
    values = {"tiny": 5e-324, "third": 1 / 3, "huge": 1.7976931348623157e308, "zero": -0.0}
    tracker = JsonlTracker(tmp_path)
    tracker.begin(0)
    tracker.scalars(1, values)
    tracker.close()
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert {name: line[name].hex() for name in values} == {
        name: value.hex() for name, value in values.items()
    }


def test_a_resumed_run_drops_what_its_checkpoint_does_not_know(tmp_path):
    log(tmp_path, 0, 1, 2, 3, 4, 5)
    log(tmp_path, 2, 3, 4)
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    log(tmp_path, 0, 1)
    assert steps_of(tmp_path) == [1]


def test_a_finished_run_keeps_its_lines(tmp_path):
    log(tmp_path, 0, 1, 2, 3)
    log(tmp_path, 3)
    assert steps_of(tmp_path) == [1, 2, 3]


def test_killed_at_any_byte_there_is_no_gap_and_no_repetition(tmp_path):
    """The checkpoint is of step 2, so steps 1 and 2 are whole on disk; the kill tears the rest."""
    log(tmp_path, 0, 1, 2, 3, 4)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    first = len(b"".join(whole.splitlines(keepends=True)[:2]))
    for end in range(first, len(whole) + 1):
        file.write_bytes(whole[:end])
        log(tmp_path, 2, 3, 4)
        assert file.read_bytes() == whole, f"torn at byte {end}"


def test_a_run_without_a_checkpoint_starts_its_lines_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    log(tmp_path, 0, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0, "lr": 0.001}\n'


def test_a_video_lands_in_samples_with_its_prompt(tmp_path, clip):
    tracker = JsonlTracker(tmp_path)
    tracker.begin(0)
    tracker.video(5, "step_000000005_0", clip)
    tracker.close()
    kept = tmp_path / "samples" / "step_000000005_0.mp4"
    assert kept.read_bytes() == clip.read_bytes()
    assert kept.with_suffix(".txt").read_text() == "a white square moves right\n"


def test_other_ranks_write_nothing(tmp_path, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    tracker = SilentTracker()
    tracker.begin(0)
    tracker.scalars(1, {"loss": 1.0})
    tracker.video(1, "x", clip)
    tracker.close()
    assert sorted(tmp_path.rglob("*")) == before


# ---- mirrors ----------------------------------------------------------------------------------


def test_a_mirror_is_told_the_same(tmp_path, clip):
    mirror = Notebook()
    tracker = JsonlTracker(tmp_path, mirror=mirror)
    tracker.begin(4)
    tracker.scalars(5, {"loss": 0.5})
    tracker.video(5, "clip", clip)
    tracker.close()
    assert mirror.told == [
        ("begin", 4),
        ("scalars", 5, {"loss": 0.5}),
        ("video", 5, "clip", clip.read_bytes()),
        ("close",),
    ]


def test_a_mirror_that_fails_stops_nothing(tmp_path, clip, capsys):
    tracker = JsonlTracker(tmp_path, mirror=Failing())
    tracker.begin(0)
    for step in (1, 2, 3):
        tracker.scalars(step, {"loss": 1.0})
    tracker.video(3, "clip", clip)
    tracker.close()
    assert steps_of(tmp_path) == [1, 2, 3]
    assert (tmp_path / "samples" / "clip.mp4").exists()
    # Said once, not at every one of a million steps.
    assert capsys.readouterr().err.count("nobody there") == 1


# ---- Weights & Biases, without its servers ----------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """W&B as on a machine without account or key."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    return run_dir


def test_wandb_without_a_key_writes_scalars_and_videos_here(offline, clip):
    mirror = WandbTracker(
        run_name="tiny", run_dir=offline, config={"run": {"name": "tiny", "steps": 2}}
    )
    assert isinstance(mirror, Tracker)
    tracker = JsonlTracker(offline, mirror=mirror)
    tracker.begin(0)
    tracker.scalars(1, {"loss/flow": 0.728125})
    tracker.scalars(2, {"loss/flow": 0.359375})
    tracker.video(2, "clip", clip)
    tracker.close()
    wandb.teardown()  # its service may still be writing

    (folder,) = (offline / "wandb").glob("offline-run-*-tiny")
    (record,) = folder.glob("*.wandb")
    written = record.read_bytes()
    for text in (b"loss/flow", b"0.728125", b"0.359375", b"train/step", b"samples/clip"):
        assert text in written
    (video,) = folder.rglob("*.mp4")
    assert video.read_bytes() == clip.read_bytes()
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
    assert steps_of(offline) == [1, 2]


def test_wandb_that_cannot_start_is_silent_and_the_run_goes_on(offline, clip, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    tracker = JsonlTracker(
        offline, mirror=WandbTracker(run_name="tiny", run_dir=offline, config={})
    )
    tracker.begin(0)
    tracker.scalars(1, {"loss": 1.0})
    tracker.video(1, "clip", clip)
    tracker.close()
    assert steps_of(offline) == [1]
    assert "WandbTracker off" in capsys.readouterr().err


def test_a_video_that_wandb_cannot_take_does_not_stop_the_run(offline, tmp_path):
    tracker = JsonlTracker(
        offline, mirror=WandbTracker(run_name="tiny", run_dir=offline, config={})
    )
    tracker.begin(0)
    odd = tmp_path / "clip.avi"
    odd.write_bytes(b"not an MP4")
    tracker.video(1, "clip", odd)
    tracker.scalars(1, {"loss": 1.0})
    tracker.close()
    assert steps_of(offline) == [1]
