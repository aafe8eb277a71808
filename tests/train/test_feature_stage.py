"""A network learns to read captions from clips, and a tokenizer is trained with what it sees."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hstvg.generate.bundle import load_model
from hstvg.nn.features import FeatureNetwork, load_features
from hstvg.paths.draws import Draws
from hstvg.runtime.assemble import open_run
from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.launch import run_training
from hstvg.runtime.track_jsonl import read_metrics
from hstvg.train.feature_stage import NUM_WORDS, WORDS, FeatureStage, words_of
from hstvg.train.ports import Stage
from hstvg.types import VideoBatch

CAPTION = "a red circle moves up and a blue circle moves left quickly, in warm style"
SMALL = ("stage=features", "stage.module.features.base=4", "stage.module.features.depth=2")
LOCAL = ("worker=local", "engine=torch")


def batch_of(*captions):
    count = len(captions)
    return VideoBatch(
        pixels=torch.randn(count, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        fps=torch.full((count,), 8.0),
        captions=captions,
        positions=torch.arange(count),
        keys=("",) * count,
    )


def stage():
    torch.manual_seed(0)
    return FeatureStage(features=FeatureNetwork(num_words=NUM_WORDS, base=4, depth=2))


def draws(count):
    return Draws(0, range(count), torch.device("cpu"))


def said(caption):
    every = [(kind, word) for kind, words in WORDS.items() for word in words]
    return {pair for pair, held in zip(every, words_of(caption), strict=True) if held}


def test_the_words_of_captions_by_hand():
    assert said(CAPTION) == {
        *(("colour", "red"), ("colour", "blue"), ("shape", "circle")),
        *(("motion", "up"), ("motion", "left"), ("speed", None), ("speed", "quickly")),
        *(("camera", "still"), ("style", "warm")),
    }


def test_the_order_of_objects_is_nothing_to_be_read():
    other = "a blue circle moves left quickly and a red circle moves up, in warm style"
    assert words_of(other) == words_of(CAPTION)


def test_a_kind_counts_as_read_if_all_its_words_are():
    read = stage()
    assert isinstance(read, Stage)
    batch = batch_of("a red circle moves up", CAPTION)
    example = read.example(batch, draws(2))
    read.features.forward = lambda pixels: logits  # what is said of each clip
    logits = 4 * example.shown - 2
    logits[1, 0] = -1.0  # the second clip's red is missed
    prediction = read(example)
    assert prediction.statistics["accuracy/colour"] == 0.5
    assert {float(prediction.statistics[f"accuracy/{kind}"]) for kind in list(WORDS)[1:]} == {1}


def test_captions_of_another_world_are_refused():
    with pytest.raises(ValueError, match="not an object of the shape world"):
        stage().example(batch_of("a dog runs"), draws(1))


def test_a_network_of_another_number_of_words_is_refused():
    with pytest.raises(ValueError, match=f"num_words=3, but captions have {NUM_WORDS}"):
        FeatureStage(features=FeatureNetwork(num_words=3))


# ---- in a run -----------------------------------------------------------------------------------


def perceptual(folder):
    return "+term=perceptual", f"objective.terms.perceptual.term.features={folder}"


def lines_of(run):
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in read_metrics(run / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_locally):
    """`feat` and, trained with what it sees, `tok`."""
    root = tmp_path_factory.mktemp("runs")
    run_locally(root, "feat", *SMALL)
    run_locally(root, "tok", *perceptual(root / "feat" / "export"))
    return root


def test_a_run_reads_and_says_how_well(runs):
    for line in lines_of(runs / "feat"):
        assert line["loss"] == line["loss/words"] > 0
        assert all(0 <= line[f"accuracy/{kind}"] <= 1 for kind in WORDS)
    last = lines_of(runs / "feat")[-1]
    assert all(0 <= last[f"val/accuracy/{kind}"] <= 1 for kind in WORDS)


def test_the_export_is_the_network(runs):
    export = runs / "feat" / "export"
    assert json.loads((export / "config.json").read_text())["features"]["num_words"] == NUM_WORDS
    assert "from hstvg.nn.features import load_features" in (export / "README.md").read_text()
    network = load_features(export)
    assert network(torch.zeros(1, 3, 8, 16, 16)).shape == (1, NUM_WORDS)


def test_resumed_equals_undisturbed(runs, run_locally, tmp_path):
    resumed = Path(shutil.copytree(runs / "feat", tmp_path / "feat"))
    shutil.rmtree(resumed / "checkpoints" / "step_000000004")
    run_locally(tmp_path, "feat", *SMALL)
    assert lines_of(resumed) == lines_of(runs / "feat")
    want, got = (load_file(r / "export" / "model.safetensors") for r in (runs / "feat", resumed))
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_a_tokenizer_is_trained_with_it_and_does_not_hold_it(runs):
    line = lines_of(runs / "tok")[-1]
    assert line["loss/perceptual"] > 0
    assert line["val/perceptual"] > 0
    names = load_file(runs / "tok" / "export" / "model.safetensors")
    assert not [name for name in names if "features" in name or "perceptual" in name]
    lineage = json.loads((runs / "tok" / "lineage.json").read_text())
    (file, digest), *more = lineage["terms"]["files"].items()
    assert file == str(runs / "feat" / "export" / "model.safetensors")
    assert digest.startswith("sha256:")
    assert not more


def test_a_run_does_not_go_on_with_other_features(runs, compose_run, tmp_path):
    feat = Path(shutil.copytree(runs / "feat", tmp_path / "feat"))
    tok = Path(shutil.copytree(runs / "tok", tmp_path / "tok"))
    for file in ("config.yaml", "lineage.json"):
        moved = (tok / file).read_text().replace(str(runs), str(tmp_path))
        (tok / file).write_text(moved)
    model = feat / "export" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    more = perceptual(feat / "export")
    with pytest.raises(ConfigError, match=r"another files of its terms.*objective\.terms"):
        run_training(*compose_run(tmp_path, "tok", *LOCAL, *more))


def test_features_that_are_not_there_are_refused_before_the_start(compose_run, tmp_path):
    more = perceptual(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="nowhere holds no exported network"):
        run_training(*compose_run(tmp_path, "tok", *LOCAL, *more))


def test_it_is_no_model_of_videos(runs, compose_run, tmp_path):
    with pytest.raises(ConfigError, match="stage=features, which makes no videos"):
        open_run(runs / "feat")
    with pytest.raises(ValueError, match="stage=features is no model of videos"):
        load_model(runs / "feat" / "export")
    more = ("stage=generator", f"tokenizer_run={runs / 'feat'}")
    with pytest.raises(CommandError, match="is of stage=features, which has none"):
        run_training(*compose_run(tmp_path, "gen", *LOCAL, *more))
