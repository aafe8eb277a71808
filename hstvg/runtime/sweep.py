"""Sweeps: Ray Tune over override keys, each trial a real training run.

A trial is a list of override strings, so any of them can be run again by itself. Trials are judged
by an unweighted held-out value: the training loss contains the very weights that are searched.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hstvg.runtime.assemble import settle
from hstvg.runtime.cluster import connect
from hstvg.runtime.config import compose
from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.index import read_index
from hstvg.runtime.launch import run_training
from hstvg.runtime.lineage import write_json


def sweep(config: dict[str, Any], overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Run the trials and return them, best first; also written to trials.json.

    Raises:
        ConfigError: a search key is unknown or its range is wrong; no trial has started.
        CommandError: no trial finished.
    """
    facts = config["sweep"]
    check_keys(facts, overrides)
    settled = settle(_training_part(config))
    if config["dry_run"]:
        span = f"{facts['low']:g} to {facts['high']:g}"
        print(f"{facts['num_trials']} trials of {', '.join(facts['keys'])} from {span}")
        return []
    read_index(config["data"]["path"])
    folder = Path(settled["run_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    connect()
    results = _tune(facts, overrides, settled)
    trials = [_trial(result, facts) for result in results]
    finished = sorted(
        (trial for trial in trials if trial["value"] is not None),
        key=lambda trial: trial["value"] if facts["mode"] == "min" else -trial["value"],
    )
    write_json(folder / "trials.json", {"metric": facts["metric"], "trials": trials})
    if not finished:
        raise CommandError(f"none of {len(trials)} trials finished: {trials[0]['error']}")
    print(table(finished, [t for t in trials if t["value"] is None], facts["metric"]))
    print(folder / "trials.json")
    return finished


def check_keys(facts: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Prove that every search key is a real override.

    Raises:
        ConfigError: there is no key, one is unknown, or the range is not 0 < low < high.
    """
    if not facts["keys"]:
        raise ConfigError("sweep.keys is empty; give e.g. sweep.keys=[objective.terms.flow.weight]")
    if not 0 < facts["low"] < facts["high"]:
        raise ConfigError(
            f"sweep.low={facts['low']} and sweep.high={facts['high']}: need 0 < low < high"
        )
    for key in facts["keys"]:
        compose("sweep", [*overrides, f"{key}={facts['low']}"])


def table(finished: Sequence[Mapping], failed: Sequence[Mapping], metric: str) -> str:
    """Trials as text, best first, each with the overrides that repeat it."""
    lines = [f"{'trial':<10} {metric:<16} overrides"]
    lines += [f"{t['name']:<10} {t['value']:<16.6g} {' '.join(t['overrides'])}" for t in finished]
    lines += [f"{t['name']:<10} {'failed':<16} {' '.join(t['overrides'])}" for t in failed]
    return "\n".join(lines)


def _tune(facts: Mapping[str, Any], overrides: Sequence[str], settled: Mapping[str, Any]):
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    folder = Path(settled["run_dir"])
    start = _current(facts["keys"], overrides)

    def trainable(values: dict[str, float]) -> None:
        name = tune.get_context().get_trial_name().rsplit("_", 1)[-1]
        chosen = _as_overrides(values)
        config = _training_part(compose("sweep", [*overrides, *chosen]))
        config["run"] |= {"root": str(folder), "name": f"trial-{name}"}
        # As absolute as the driver made them: a trial has another working directory.
        config["data"]["path"] = settled["data"]["path"]
        config["tokenizer_run"] = settled["tokenizer_run"]
        place = [f"run.root={folder}", f"run.name=trial-{name}"]
        held_out = run_training(config, [*_for_train(overrides), *chosen, *place])
        tune.report({**held_out, "run": f"trial-{name}"})

    tuner = tune.Tuner(
        # The trial itself only waits; its workers take what they need.
        tune.with_resources(trainable, {"CPU": 0.01}),
        param_space={key: tune.loguniform(facts["low"], facts["high"]) for key in facts["keys"]},
        tune_config=tune.TuneConfig(
            num_samples=facts["num_trials"],
            search_alg=BasicVariantGenerator(
                points_to_evaluate=[start],
                max_concurrent=facts["max_concurrent"],
                random_state=facts["seed"],
            ),
            trial_name_creator=lambda trial: f"trial_{trial.trial_id.rsplit('_', 1)[-1]}",
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
    )
    return tuner.fit()


def _current(keys: Sequence[str], overrides: Sequence[str]) -> dict[str, float]:
    """The values of the searched keys without a sweep: the first trial is the status quo."""
    config = compose("sweep", overrides)
    values = {}
    for key in keys:
        node: Any = config
        for part in key.split("."):
            node = node[part]
        values[key] = float(node)
    return values


def _trial(result: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: result.config[key] for key in facts["keys"]}
    metrics = result.metrics or {}
    value = metrics.get(facts["metric"])
    error = None if value is not None else str(result.error or f"no {facts['metric']} was reported")
    return {
        "name": metrics.get("run", "-"),
        "value": value,
        "overrides": _as_overrides(values),
        "held_out": {key: v for key, v in metrics.items() if key.startswith("val/")},
        "error": error and error.strip().splitlines()[-1],
    }


def _as_overrides(values: Mapping[str, float]) -> list[str]:
    return [f"{key}={value:.6g}" for key, value in values.items()]


def _training_part(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "sweep"}


def _for_train(overrides: Sequence[str]) -> list[str]:
    """What `pipelines.train` is to be told to repeat a trial, but for its name and values."""
    own = ("sweep.", "run.name=", "run.root=")
    kept = [item for item in overrides if not item.lstrip("+~").startswith(own)]
    stage = [] if any(item.startswith("stage=") for item in kept) else ["stage=generator"]
    return [*stage, *kept]
