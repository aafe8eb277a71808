"""An evaluation with style references: who shows whom what, and what is said of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from hstvg.data.sample import Window
from hstvg.metrics.style import find_style
from hstvg.report import write_report
from hstvg.runtime.config import compose
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.evaluation import evaluate
from hstvg.runtime.index import read_index, write_index
from hstvg.runtime.shard import write_shard
from hstvg.runtime.source import ShapeSource
from hstvg.runtime.style_scores import ReferenceClips

STYLING = "+generator.style={_target_: hstvg.generator.style.Styling, width: 8}"
HELD_OUT = ("val", "unseen")


@pytest.fixture(scope="module")
def styled_dataset(tmp_path_factory) -> Path:
    """160 clips of one shape each, most of them in a style."""
    folder = tmp_path_factory.mktemp("data") / "styled"
    (folder / "shards").mkdir(parents=True)
    source = ShapeSource(num_clips=160, max_shapes=1, style_fraction=0.85)
    samples = (source.sample(item) for item in source.items())
    write_index(folder, write_shard(folder / "shards" / "000000.tar", samples))
    return folder


@pytest.fixture(scope="module")
def runs(run_of_hst) -> Path:
    return run_of_hst("styled", STYLING)


def scored(run: Path, data: Path, *overrides: str):
    fixed = ["num_clips=4", "num_rows=2", "steps=2", *overrides]
    return evaluate(compose("evaluate", [f"run={run}", f"data.path={data}", *fixed]))


def test_content_and_style_stand_side_by_side(runs, styled_dataset):
    run = runs / "styled"
    scores = scored(run, styled_dataset, "style_references=true")
    assert json.loads((run / "eval" / "metrics.json").read_text()) == scores
    assert scores["chance"]["style"] == 1 / 8
    assert set(scores["style"]) == set(scores["control"])
    for rows in scores["style"].values():
        assert set(rows) == {"real", "reconstruction", "generated", "reference", "no_reference"}
        assert set(rows["real"]) == {"style", "colour", "shape", "motion"}
        assert {row["style"]["n"] for row in rows.values()} == {4}
        # No step was trained with a reference: the adapter is silent, and the noise is the same.
        assert rows["reference"] == rows["no_reference"]
    (first, *_) = json.loads((run / "eval" / "rows.json").read_text())
    assert {"real", "reconstruction", "sample", "reference", "like_reference"} < set(first)
    page = write_report(run).read_text()
    assert "held-out, styles" in page
    assert "the same prompts without that clip" in page


def test_without_references_captions_alone_are_asked_for_their_style(runs, styled_dataset):
    scores = scored(runs / "words", styled_dataset, f"out={runs / 'out'}")
    for rows in scores["style"].values():
        assert set(rows) == {"real", "reconstruction", "generated"}


def test_plain_data_have_no_styles_to_speak_of(runs, shapes_dataset):
    scores = scored(runs / "words", shapes_dataset, f"out={runs / 'out'}")
    assert "style" not in scores
    assert "style" not in scores["chance"]
    with pytest.raises(ConfigError, match="name 1 of 8 styles twice"):
        scored(runs / "styled", shapes_dataset, "style_references=true")


@pytest.mark.parametrize(
    ("name", "said"),
    [("words", r"train one with \+term=style"), ("tok", "a tokenizer's run makes no clips")],
)
def test_a_run_that_takes_no_reference_says_so(runs, styled_dataset, name, said):
    with pytest.raises(ConfigError, match=said) as error:
        scored(runs / name, styled_dataset, "style_references=true", "dry_run=true")
    assert "\n" not in str(error.value)


def test_references_are_others_and_of_many_styles(styled_dataset):
    index = read_index(str(styled_dataset))
    window = Window(num_frames=16, fps=8.0, height=32, width=32)
    held_out = np.concatenate([index.rows_of(name) for name in HELD_OUT])
    clips = ReferenceClips(index, HELD_OUT, window, seed=0)
    found = [clips.of(int(row)) for row in held_out]
    assert len({reference.style for reference in found}) > 4
    right = [find_style(reference.frames) == reference.style for reference in found]
    assert np.mean(right) > 0.9
    again = ReferenceClips(index, HELD_OUT, window, seed=0).of(int(held_out[5]))
    assert again.style == found[5].style
    assert np.array_equal(again.frames, found[5].frames)
    other = ReferenceClips(index, HELD_OUT, window, seed=1)
    assert [other.of(int(row)).style for row in held_out] != [one.style for one in found]
