"""What a dry run says of the data, and which buckets it refuses."""

import shutil
from pathlib import Path

import pytest

from hstvg.runtime import preflight
from hstvg.runtime.assemble import settle
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.index import read_index, write_index
from hstvg.runtime.launch import run_training


def settled(compose_run, root: Path, *overrides: str):
    return settle(compose_run(root, "run", *overrides)[0])


def test_a_dry_run_says_what_the_index_holds(shapes_dataset, compose_run, tmp_path, capsys):
    """8x16x16 pixels in cells of 2x4x4 are 64 tokens; 4 clips of a step."""
    train = len(read_index(shapes_dataset).rows_of("train"))
    run_training(*compose_run(tmp_path, "run", "dry_run=true", "run.steps=100"))
    said = capsys.readouterr().out
    assert f"{train} of 96 clips are for training" in said
    assert (
        f"bucket 8x16x16      {train} clips of 64 tokens, 4 a step, {train / 4:.1f} steps" in said
    )
    assert f"the run is {100 / (train / 4):.2f} epochs" in said
    assert "MB decoded per step" in said
    assert "object store" in said
    assert not list(tmp_path.iterdir())


def test_empty_buckets_are_named(shapes_dataset, compose_run, tmp_path):
    """All clips are square, and none fills 64 frames at 8 fps."""
    buckets = "data.buckets=[8x16x16,64x16x16,8x16x32]"
    said = preflight.describe(settled(compose_run, tmp_path, buckets))
    assert "bucket 64x16x16     empty" in said
    assert "bucket 8x16x32      empty" in said


@pytest.mark.parametrize(
    ("bucket", "said"), [("8x16x18", "cannot take 8x16x18"), ("8x16", "FRAMESxHEIGHTxWIDTH")]
)
def test_a_bucket_that_the_model_cannot_take_is_refused(compose_run, tmp_path, bucket, said):
    with pytest.raises(ConfigError, match=said):
        preflight.check(settled(compose_run, tmp_path, f"data.buckets=[{bucket}]"))


@pytest.mark.parametrize(
    ("decoder", "said"),
    [("ffmpeg", "must be one of pyav, torchcodec"), ("torchcodec", "pip install")],
)
def test_a_decoder_that_is_not_there_is_refused(compose_run, tmp_path, decoder, said):
    with pytest.raises(ConfigError, match=said):
        preflight.check(settled(compose_run, tmp_path, f"data.decoder={decoder}"))


def test_a_data_set_that_is_not_there_is_said(compose_run, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        run_training(*compose_run(tmp_path, "run", "dry_run=true", f"data.path={tmp_path / 'no'}"))


@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_clips_of_two_sizes_are_trained_together(
    shapes_dataset, run_locally, tmp_path_factory, tmp_path, stage
):
    data = Path(shutil.copytree(shapes_dataset, tmp_path / "data"))
    table = read_index(data).table.to_pylist()
    write_index(data, [{**row, "width": 64} if i % 2 else row for i, row in enumerate(table)])
    given = (f"data.path={data}", "data.buckets=[8x16x16,8x16x32]", "run.log_samples=true")
    run_locally(tmp_path, "tok", *given)
    if stage == "generator":
        more = ("stage=generator", f"tokenizer_run={tmp_path / 'tok'}")
        run_locally(tmp_path, "gen", *given, *more)
    with pytest.raises(ConfigError, match=r"run\.micro_batch was 2, now 1, with data\.buckets"):
        run_locally(tmp_path, "tok", *given, "run.micro_batch=1", "run.steps=6")
