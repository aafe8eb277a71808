"""The next-scale path without Ray: trained from pixels and from latents, sampled, gone on from."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from hstvg.data.video import encode_video
from hstvg.runtime.config import compose
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.evaluation import evaluate
from hstvg.runtime.sampling import generate
from hstvg.runtime.track_jsonl import read_metrics

PROMPT = "a red circle moves right"


def frames_of(file: Path) -> np.ndarray:
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module", params=["cubic", "frames"])
def run(request, tmp_path_factory, run_locally) -> Path:
    root = tmp_path_factory.mktemp("runs")
    run_locally(root, "tok", f"tokenizer.schedule={request.param}")
    options = ("stage=generator", "generator=next_scale", f"tokenizer_run={root / 'tok'}")
    return run_locally(root, "gen", *options)


def sample(run: Path, file: Path, *overrides: str) -> np.ndarray:
    options = [f"run={run}", f'prompt="{PROMPT}"', f"out={file}", *overrides]
    assert generate(compose("generate", options)) == [file]
    return frames_of(file)


def test_every_rung_is_learnt_and_watched(run):
    (*_, last) = read_metrics(run / "metrics.jsonl")
    assert {"loss/next_scale", "val/next_scale"} <= last.keys()
    assert any(name.startswith("codes/accuracy_0_") for name in last)


def test_a_prompt_becomes_a_video_of_one_block_or_more(run, tmp_path):
    block = sample(run, tmp_path / "block.mp4")
    assert block.shape == (8, 16, 16, 3)
    assert sample(run, tmp_path / "long.mp4", "duration_s=2.25").shape == (18, 16, 16, 3)
    assert sample(run, tmp_path / "short.mp4", "duration_s=0.5").shape == (4, 16, 16, 3)


def test_a_video_is_shown_scale_by_scale(run, tmp_path):
    export = json.loads((run / "export" / "config.json").read_text())
    assert export["generator"]["_target_"].endswith("NextScaleGenerator")
    shown = sample(run, tmp_path / "scales.mp4", "show_scales=true")
    plain = sample(run, tmp_path / "plain.mp4")
    rows = shown.reshape(8, -1, 16, 16, 3)
    assert rows.shape[1] == 3  # 1x1x1, 2x2x2, 4x4x4; or of every frame 1x1x1, 1x2x2, 1x4x4
    # The codec of MP4 sees other neighbours in the picture of rows.
    assert np.abs(rows[:, -1].astype(int) - plain).mean() < 6


def test_a_clip_goes_on_from_given_frames(run, tmp_path):
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (6, 16, 16, 3)).copy()
    given = tmp_path / "given.mp4"
    given.write_bytes(encode_video(frames, 8.0, crf=10))
    whole = sample(run, tmp_path / "on.mp4", f"given={given}", "duration_s=1.5")
    assert whole.shape == (12, 16, 16, 3)
    assert np.abs(whole[:6].astype(int) - frames).mean() < 12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kappa=1", "writes 3 scales"),
        ("given=nowhere.mp4", "does not exist"),
        ("duration_s=0.01", "shorter than a frame"),
        ("top_k=-1", "top_k=-1 is out of its range"),
    ],
)
def test_what_cannot_be_sampled_is_refused(run, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        sample(run, tmp_path / "no.mp4", override)


def test_scales_are_scored(run, shapes_dataset, tmp_path):
    options = ["num_clips=4", "num_rows=2", f"data.path={shapes_dataset}", f"out={tmp_path}"]
    scores = evaluate(compose("evaluate", [f"run={run}", *options]))
    assert [sorted(row) for row in scores["scales"]] == [
        ["entropy", "explained", "psnr", "scale", "ssim", "tokens"]
    ] * 3
    assert set(scores["control"]) <= {"held-out", "unseen combinations"}
