"""A loss term is one new file: it is named on the command line, and nothing else is edited."""

import pytest

from hstvg.runtime.checkpoint import read_manifest
from hstvg.runtime.config import compose
from hstvg.runtime.sweep import check_keys
from hstvg.runtime.track_jsonl import read_metrics

FILE = '''
"""BrightnessTerm: a clip is as bright as the true one."""

from jaxtyping import Float
from torch import Tensor

from hstvg.types import Prediction, TrainingBatch


class BrightnessTerm:
    """Squared error of the mean pixel; the trivial guess is grey."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        assert prediction.pixels is not None, "BrightnessTerm needs Prediction.pixels"
        pair = prediction.pixels
        return (pair.guess.flatten(1).mean(1) - pair.target.flatten(1).mean(1)).square()

    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        return prediction.pixels.target.flatten(1).mean(1).square()
'''
NODE = (
    "{_target_: hstvg.objective.objective.WeightedTerm, weight: 0.5, warmup: 0.5, normalise: true,"
    " term: {_target_: somebodys_terms.brightness.BrightnessTerm}}"
)
TERM = f"+objective.terms.brightness={NODE}"


@pytest.fixture
def _file(tmp_path, monkeypatch):
    package = tmp_path / "somebodys_terms"
    package.mkdir()
    (package / "brightness.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_file")
def test_a_new_term_trains_resumes_and_is_searched_for(run_locally, tmp_path):
    run = run_locally(tmp_path / "runs", "tok", TERM)
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["weight/brightness"] for line in lines] == [0, 0.25, 0.5, 0.5]
    for line in lines:
        assert line["loss/brightness"] > 0
        assert line["skill/brightness"] == pytest.approx(
            1 - line["loss/brightness"] / line["trivial/brightness"]
        )
    assert {"val/brightness", "val/skill/brightness"} <= lines[-1].keys()
    manifest = read_manifest(run / "checkpoints" / "step_000000004")
    assert manifest["objective"]["brightness"]["steps"] == 4
    run_locally(tmp_path / "runs", "tok", TERM, "run.steps=6")
    assert len(read_metrics(run / "metrics.jsonl")) == 6

    key = "objective.terms.brightness.weight"
    overrides = ["data.path=data", "run.name=x", "stage=tokenizer", TERM, f"sweep.keys=[{key}]"]
    check_keys(compose("sweep", overrides)["sweep"], overrides)


@pytest.mark.usefixtures("_file")
def test_it_is_in_the_total(run_locally, tmp_path):
    """Whether it is heard, and not only logged: by the same steps without it."""
    with_it = run_locally(tmp_path / "with", "tok", TERM, "run.steps=2")
    without = run_locally(tmp_path / "without", "tok", "run.steps=2")
    first, second = (read_metrics(run / "metrics.jsonl") for run in (with_it, without))
    assert first[0]["loss"] == second[0]["loss"]  # its weight is still 0
    assert first[1]["loss"] > second[1]["loss"]
