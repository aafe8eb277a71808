"""Every file under conf/ composes and its nodes build; what is wrong is named before any start."""

import json
from pathlib import Path

import pytest
import torch

from hstvg.generator.history import History
from hstvg.generator.layout import Layouts
from hstvg.objective.objective import Objective, WeightedTerm
from hstvg.paths.motion_noise import MotionNoise
from hstvg.runtime import preflight
from hstvg.runtime.assemble import build_objective, settle
from hstvg.runtime.config import CONF_DIR, build, compose, config_hash
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.launch import run_training
from hstvg.runtime.source import Source
from hstvg.runtime.source_latents import LatentSource
from hstvg.runtime.sweep import check_keys
from hstvg.train.ports import Tracker
from hstvg.types import Term

NEEDED = {
    "prepare": ["out=out"],
    "train": ["data.path=data", "run.name=run"],
    "sweep": ["data.path=data", "run.name=run", "tokenizer_run=runs/tok"],
    "generate": ["run=runs/gen", "out=video.mp4"],
    "evaluate": ["run=runs/gen", "data.path=data"],
    "report": ["run=runs/gen"],
    "demo": [],
}
"""What each pipeline must be given."""

TERMS = {
    "tokenizer": ("reconstruction", "temporal", "kl", "codec", "commitment"),
    "generator": ("diffusion", "flow"),
    "features": ("words",),
}


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def compose_train(*overrides: str) -> dict:
    return compose("train", [*NEEDED["train"], *overrides])


def failing(pipeline: str, *overrides: str) -> str:
    """The one line that a wrong config dies with."""
    with pytest.raises(ConfigError) as caught:
        compose(pipeline, [*NEEDED[pipeline], *overrides])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what is there composes and builds --------------------------------------------------------


def test_every_pipeline_has_a_primary_config_and_the_reverse():
    pipelines = {path.stem for path in (CONF_DIR.parent / "pipelines").glob("[a-z]*.py")}
    assert {path.stem for path in CONF_DIR.glob("*.yaml")} == pipelines == set(NEEDED)


def test_every_group_is_known_to_this_file():
    groups = {path.name for path in CONF_DIR.iterdir() if path.is_dir()}
    assert groups == {
        *("model", "tokenizer", "generator", "stage", "worker", "engine", "tracker"),
        *("adversary", "term", "noise", "layout", "history", "source", "experiment"),
    }


@pytest.mark.parametrize("pipeline", NEEDED)
def test_a_primary_config_composes_to_plain_values(pipeline):
    config = compose(pipeline, NEEDED[pipeline])
    assert json.loads(json.dumps(config)) == config
    assert len(config_hash(config)) == 64


@pytest.mark.parametrize("pipeline", [name for name, needed in NEEDED.items() if needed])
def test_a_missing_key_is_named_with_what_to_add(pipeline):
    with pytest.raises(ConfigError) as caught:
        compose(pipeline, [])
    keys = [override.split("=")[0] for override in NEEDED[pipeline] if "tokenizer" not in override]
    assert all(f"{key}=..." in str(caught.value) for key in keys)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", choices("worker"))
def test_a_worker_builds(name):
    launcher = build(compose_train(f"worker={name}")["worker"])
    assert launcher.num_workers == 1
    assert callable(launcher.check)
    assert callable(launcher.launch)


@pytest.mark.parametrize("name", choices("engine"))
def test_an_engine_builds(name):
    settings = build(compose_train(f"engine={name}", "engine.precision=bf16")["engine"])
    assert settings.precision == "bf16"
    assert callable(settings.start)


@pytest.mark.parametrize("name", choices("tracker"))
def test_a_tracker_builds(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = compose_train(f"tracker={name}")
    if config["tracker"]["mirror"] is None:
        return
    make = build({**config["tracker"]["mirror"], "_partial_": True})
    mirror = make(run_name="run", run_dir=tmp_path, config=config)
    assert isinstance(mirror, Tracker)
    mirror.close()


@pytest.mark.parametrize("name", choices("source"))
def test_a_source_builds(name, tmp_path):
    paths = [f"source.path={tmp_path}"] if name != "shapes" else []
    run = [f"source.tokenizer_run={tmp_path}"] if name == "latents" else []
    made = compose("prepare", [*NEEDED["prepare"], f"source={name}", *paths, *run])["source"]
    assert isinstance(build(made), Source | LatentSource)


@pytest.mark.parametrize("stage", choices("stage"))
@pytest.mark.parametrize("model", choices("model"))
def test_a_model_builds_and_is_measured_without_memory(model, stage, capsys, tmp_path):
    """`dry_run=true` builds the stage on the meta device and sends one micro-batch through it."""
    config = compose_train(f"model={model}", f"stage={stage}", "dry_run=true")
    config["run"]["root"] = str(tmp_path)
    config["data"]["path"] = "???"  # may be left out
    preflight.check(settle(config))
    assert run_training(config, []) == {}
    said = capsys.readouterr().out
    latent = () if stage == "features" else ("latent", "tokens")
    for word in (f"stage            {stage}", *latent, "parameters", "TFLOP", "ZeRO-3"):
        assert word in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", choices("adversary"))
def test_an_adversary_builds_and_is_off_by_default(name):
    assert compose_train()["adversary"] is None
    config = settle(compose_train(f"adversary={name}"))
    preflight.check(config)
    assert build_objective(config).terms["adversarial"].weight > 0


@pytest.mark.parametrize("generator", choices("generator"))
@pytest.mark.parametrize("model", choices("model"))
def test_every_generator_builds_at_every_size(model, generator):
    overrides = (f"model={model}", f"generator={generator}", "dry_run=true")
    config = compose_train("stage=generator", *overrides)
    preflight.check(settle(config))
    objective = build_objective(config)
    terms = {"hst": {"diffusion", "flow"}, "next_scale": {"next_scale"}}
    terms["joint"] = terms["hst"] | terms["next_scale"]
    assert set(objective.terms) == terms[generator]


FILES = {"perceptual": "features=export", "lpips": "weights=lpips.pt"}
"""Of the terms that must be given one."""


@pytest.mark.parametrize("name", choices("term"))
def test_a_further_term_is_one_choice(name):
    given = [f"objective.terms.{name}.term.{FILES[name]}"] if name in FILES else []
    terms = compose_train(f"+term={name}", *given)["objective"]["terms"]
    assert tuple(terms) == (*TERMS["tokenizer"], name)
    if given:
        assert f"add {given[0].split('=')[0]}=..." in failing("train", f"+term={name}")
    else:
        assert isinstance(build(terms[name]["term"]), Term)


def test_further_terms_can_be_combined():
    terms = compose_train("+term=[wavelet,perceptual]", "dry_run=true")["objective"]["terms"]
    assert {"wavelet", "perceptual"} < terms.keys()


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"+noise={name}", "generator.noise.seconds=0.25"] for name in choices("noise")),
        [
            "+generator.noise._target_=hstvg.paths.motion_noise.MotionNoise",
            "+generator.noise.seconds=0.25",
        ],
    ],
)
def test_noise_that_moves_is_one_choice(overrides):
    config = compose_train("stage=generator", *overrides, "dry_run=true")
    preflight.check(settle(config))
    assert type(build(config["generator"]["noise"])) is MotionNoise


@pytest.mark.parametrize("name", choices("layout"))
def test_layouts_come_with_the_data_they_need(name):
    config = compose_train("stage=generator", f"+layout={name}")
    assert config["data"]["layout"]
    assert type(build(config["generator"]["layout"])) is Layouts


def test_noise_that_moves_must_know_how_fast():
    said = failing("train", "stage=generator", "+noise=motion")
    assert "generator.noise.seconds" in said


@pytest.mark.parametrize("generator", ["hst", "joint"])
@pytest.mark.parametrize("name", choices("history"))
def test_blocks_that_know_of_those_before_are_one_choice(name, generator):
    overrides = (f"generator={generator}", f"+history={name}", "model.unet.kinds=[local,paged]")
    base = ("stage=generator", "dry_run=true", *overrides)
    config = settle(compose_train(*base, "data.buckets=[16x32x32,32x32x32]"))
    preflight.check(config)
    assert type(build(config["generator"]["history"])) is History
    with pytest.raises(ConfigError, match="12 latent frames are no whole number of blocks of 8"):
        preflight.check(settle(compose_train(*base, "data.buckets=[24x32x32]")))
    for one in (base[:-1], base[:-2] + base[-1:]):
        with pytest.raises(ConfigError, match="need each other"):
            preflight.check(settle(compose_train(*one)))


@pytest.mark.parametrize("name", choices("experiment"))
def test_an_experiment_builds(name):
    config = compose_train(f"+experiment={name}", "dry_run=true")
    preflight.check(settle(config))


def test_sizes_of_the_clip_reach_the_tokenizer():
    config = compose_train("data.num_frames=8", "data.height=16", "data.width=24")
    with torch.device("meta"):
        tokenizer = build(config["tokenizer"])
    assert tuple(tokenizer.latent_size) == (4, 4, 6)


# ---- loss weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", TERMS)
def test_the_objective_holds_real_terms_by_name(stage):
    objective = build_objective(compose_train(f"stage={stage}"))
    assert type(objective) is Objective
    assert tuple(objective.terms) == TERMS[stage]
    assert all(type(entry) is WeightedTerm for entry in objective.terms.values())
    assert all(isinstance(entry.term, Term) for entry in objective.terms.values())


@pytest.mark.parametrize(
    ("stage", "term"), [(stage, term) for stage, terms in TERMS.items() for term in terms]
)
def test_a_weight_is_an_override(stage, term):
    config = compose_train(f"stage={stage}", f"objective.terms.{term}.weight=0.125")
    others = build_objective(compose_train(f"stage={stage}")).terms
    for name, entry in build_objective(config).terms.items():
        assert entry.weight == (0.125 if name == term else others[name].weight)


@pytest.mark.parametrize(
    ("overrides", "normalised"),
    [
        ((), set()),
        (("stage=features",), set()),
        (("stage=generator",), {"diffusion", "flow"}),
        (("stage=generator", "generator=next_scale"), set()),
        (("stage=generator", "generator=joint"), {"diffusion", "flow", "next_scale"}),
    ],
)
def test_terms_that_are_added_to_diffusion_are_normalised(overrides, normalised):
    terms = build_objective(compose_train(*overrides)).terms
    assert {name for name, entry in terms.items() if entry.normalise} == normalised


def test_a_schedule_is_an_override():
    overrides = ("+objective.terms.flow.warmup=0.1", "+objective.terms.flow.decay=0.5")
    flow = build_objective(compose_train("stage=generator", *overrides)).terms["flow"]
    assert flow.weight_at(0.05) == pytest.approx(0.05)
    assert flow.weight_at(0.75) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+objective.terms.kl.warmup=2", "shares of the run"),
        ("+objective.terms.kl.normalise=true", "KLTerm knows no trivial predictor"),
    ],
)
def test_a_wrong_schedule_is_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        build_objective(compose_train(override))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["run.gradients_every=-1"], "must be at least 0"),
        (["run.gradients_every=5", "run.compile=true"], "set run.compile=false"),
        (["run.gradients_every=5", "engine.zero_stage=3"], "set engine.zero_stage=2"),
        (
            ["run.gradients_every=5", "+engine.options.zero_optimization.stage=3"],
            "set engine.zero_stage=2",
        ),
    ],
)
def test_where_the_trunk_cannot_be_looked_at_that_is_said_before_the_start(overrides, said):
    with pytest.raises(ConfigError, match=said):
        preflight.check(settle(compose_train("stage=generator", "dry_run=true", *overrides)))


def test_a_negative_weight_is_refused():
    config = compose_train("stage=generator", "objective.terms.flow.weight=-1")
    with pytest.raises(ConfigError, match="weight of -1"):
        build_objective(config)


def test_the_searched_keys_are_overrides():
    check_keys(compose("sweep", NEEDED["sweep"])["sweep"], NEEDED["sweep"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sweep.keys=[objective.terms.flwo.weight]", "objective.terms.flwo.weight"),
        ("sweep.keys=[]", "sweep.keys is empty"),
        ("sweep.low=2", "0 < low < high"),
        ("sweep.low=0", "0 < low < high"),
    ],
)
def test_a_wrong_search_is_refused_before_any_trial(override, said):
    overrides = [*NEEDED["sweep"], override]
    with pytest.raises(ConfigError, match=said):
        check_keys(compose("sweep", overrides)["sweep"], overrides)


# ---- what is wrong is named -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "near"),
    [
        (["run.stepz=3"], "run.steps"),
        (["optimizer.lrr=1"], "optimizer.lr"),
        (["objective.terms.kll.weight=1"], "objective.terms.kl.weight"),
        (["stage=generator", "objective.terms.flwo.weight=1"], "objective.terms.flow.weight"),
        (["stage=generator", "generator.width=[1]"], "generator.widths"),
        (["tracker=wandb", "tracker.mirror.projct=x"], "tracker.mirror.project"),
        (["wrker=ray"], "worker"),
    ],
)
def test_a_misspelt_key_names_the_near_one(overrides, near):
    said = failing("train", *overrides)
    assert overrides[-1].split("=")[0] in said
    assert f"did you mean {near}?" in said


@pytest.mark.parametrize(
    "override", ["engine=torch engine.zero_stage=2", "worker=local worker.num_workers=2"]
)
def test_a_key_that_another_choice_took_away_is_not_suggested(override):
    said = failing("train", *override.split())
    assert override.split()[-1].split("=")[0] in said
    assert "did you mean" not in said


@pytest.mark.parametrize(
    "override",
    [
        "run.steps=many",
        "run.steps=1.5",
        "data.fps=fast",
        "run.name=null",
        "run=3",
        "dry_run=perhaps",
    ],
)
def test_a_wrong_type_is_named(override):
    key, value = override.split("=")
    said = failing("train", override)
    assert key in said
    assert value in said or "Optional" in said


@pytest.mark.parametrize(
    ("override", "available"),
    [
        ("model=huge", "base large small tiny"),
        ("stage=tokeniser", "features generator tokenizer"),
        ("engine=horovod", "deepspeed torch"),
        ("+experiment=none", "demo_generator"),
    ],
)
def test_an_unknown_choice_names_the_known_ones(override, available):
    said = failing("train", override)
    assert override.lstrip("+").replace("=", "/") in said
    assert available in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["engine.zero_stage=4"], "zero_stage=4"),
        (["engine.precision=fp8"], "fp8"),
        (["engine=torch", "engine.precision=fp8"], "fp8"),
        (["tokenizer.strides=[2,3,4]"], "strides"),
        (["tokenizer.strides=[3,4,4]", "data.num_frames=15"], "powers of two"),
        (["data.num_frames=15"], "not whole in strides"),
        (["+tokenizer.dept=3"], "dept"),
        (["stage=generator", "generator.draws=[1]"], "one count per level"),
        (["stage=generator", "data.num_frames=4"], "halved"),
        (["objective.terms.kl.weight=-1"], "reward the loss"),
    ],
)
def test_a_constructor_refuses_before_the_start(overrides, said):
    config = settle(compose_train(*overrides, "dry_run=true"))
    with pytest.raises(ConfigError, match=said) as caught:
        preflight.check(config)
    assert caught.value.exit_code == 2


# ---- settle: what must fit together -----------------------------------------------------------


def test_settled_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = settle(compose_train())
    assert config["data"]["path"] == str(tmp_path / "data")
    assert config["run_dir"] == str(tmp_path / "runs" / "run")
    assert config["tokenizer_run"] is None


@pytest.mark.parametrize(
    "overrides",
    [
        ["run.global_batch=6", "run.micro_batch=4"],
        ["run.global_batch=32", "worker.num_workers=3"],
        ["run.global_batch=2", "run.micro_batch=4"],
    ],
)
def test_batches_that_do_not_divide_are_refused(overrides):
    with pytest.raises(ConfigError, match="is not a multiple of") as caught:
        settle(compose_train(*overrides))
    assert "run.global_batch=" in str(caught.value)
    assert "run.micro_batch=" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "run.global_batch=0",
        "run.micro_batch=0",
        "run.steps=0",
        "run.steps=-1",
        "run.checkpoint_every=0",
        "run.validate_every=0",
        "run.log_every=0",
        "worker.num_workers=0",
        "data.fps=0",
        "optimizer.lr=-1",
        "run.name=",
    ],
)
def test_a_value_out_of_range_is_refused_by_name(override):
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        preflight.check(settle(compose_train(override)))


def test_a_generator_needs_a_tokenizer():
    with pytest.raises(ConfigError, match="needs tokenizer_run="):
        settle(compose_train("stage=generator"))


def test_a_tokenizer_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere holds no finished tokenizer") as caught:
        settle(compose_train("stage=generator", f"tokenizer_run={tmp_path / 'nowhere'}"))
    assert "stage=tokenizer run.name=nowhere" in str(caught.value)


def export_of(folder: Path, *overrides: str) -> str:
    """The config that a finished run of these overrides exports; settle reads nothing else."""
    config = compose_train(*overrides)
    window = {name: config["data"][name] for name in ("num_frames", "fps", "height", "width")}
    record = {
        "window": window,
        "tokenizer": config["tokenizer"],
        "generator": config["generator"],
        "stage": config["stage"]["name"],
        "step": 1,
    }
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "config.json").write_text(json.dumps(record))
    return f"tokenizer_run={folder}"


def test_the_tokenizer_of_a_generator_is_the_trained_one(tmp_path):
    given = export_of(tmp_path / "tok", "tokenizer.channels=5", "tokenizer.base=16")
    config = settle(compose_train("stage=generator", given, "tokenizer.base=99"))
    assert config["tokenizer"]["channels"] == 5
    assert config["tokenizer"]["base"] == 16
    assert config["tokenizer_run"] == str(tmp_path / "tok")


def test_a_relative_tokenizer_run_becomes_absolute(tmp_path, monkeypatch):
    export_of(tmp_path / "tok")
    monkeypatch.chdir(tmp_path)
    config = settle(compose_train("stage=generator", "tokenizer_run=tok"))
    assert config["tokenizer_run"] == str(tmp_path / "tok")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.num_frames=8", "data.num_frames=8 but the tokenizer knows 16"),
        ("data.height=64", "data.height=64 but the tokenizer knows 32"),
        ("data.fps=12", "data.fps=12"),
    ],
)
def test_a_latent_that_does_not_fit_is_refused(override, said, tmp_path):
    given = export_of(tmp_path / "tok")
    with pytest.raises(ConfigError, match="does not fit") as caught:
        settle(compose_train("stage=generator", given, override))
    assert said in str(caught.value)


def test_a_generators_run_is_no_tokenizers_run(tmp_path):
    given = export_of(tmp_path / "gen", "stage=generator")
    with pytest.raises(ConfigError, match="is a generator's run"):
        settle(compose_train("stage=generator", given))
