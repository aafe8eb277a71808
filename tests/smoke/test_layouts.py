"""An evaluation with layouts: samples that are told where things are, beside those that are not."""

import json
from pathlib import Path

import pytest

from hstvg.report import write_report
from hstvg.runtime.config import compose
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.evaluation import evaluate

LAYOUT = "+generator.layout={_target_: hstvg.generator.layout.Layouts}"


@pytest.fixture(scope="module")
def runs(run_of_hst) -> Path:
    return run_of_hst("placed", LAYOUT, "data.layout=true")


def scored(run: Path, data: Path, *overrides: str):
    fixed = ["num_clips=4", "num_rows=2", "steps=2", "layouts=true", *overrides]
    return evaluate(compose("evaluate", [f"run={run}", f"data.path={data}", *fixed]))


def test_overlaps_stand_beside_those_of_real_clips(runs, shapes_dataset):
    run = runs / "placed"
    scores = scored(run, shapes_dataset)
    assert json.loads((run / "eval" / "metrics.json").read_text()) == scores
    assert set(scores["layout"]) == set(scores["control"])
    for rows in scores["layout"].values():
        assert set(rows) == {"real", "reconstruction", "generated", "placed"}
        assert len({row["n"] for row in rows.values()}) == 1
        assert rows["real"]["value"] > 0.6
        assert rows["real"]["value"] > rows["placed"]["value"]
    (first, *_) = json.loads((run / "eval" / "rows.json").read_text())
    assert (run / "eval" / first["placed"]).is_file()
    assert "layout" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [("words", r"train one with \+layout=boxes"), ("tok", "a tokenizer's run makes no clips")],
)
def test_a_run_that_takes_no_layout_says_so(runs, shapes_dataset, name, said):
    with pytest.raises(ConfigError, match=said) as error:
        scored(runs / name, shapes_dataset, "dry_run=true")
    assert "\n" not in str(error.value)
