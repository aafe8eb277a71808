"""From a resolved config to the objects of a run, and the checks that a wrong config fails."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hstvg.generate.bundle import VideoModel, load_model
from hstvg.objective.objective import Objective
from hstvg.runtime.config import DataFacts, RunFacts, build
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.storage import absolute
from hstvg.train.ports import Engine, Stage, Worker


def build_stage(config: Mapping[str, Any], tokenizer: Any) -> Stage:
    """The stage to train, with initial weights that depend on run.seed alone.

    Args:
        tokenizer: the trained tokenizer of stage 2; for stage 1 the one to train.
    """
    torch.manual_seed(config["run"]["seed"])
    parts = {}
    if config["tokenizer"] is not None:
        parts["tokenizer"] = tokenizer or build(config["tokenizer"])
    if config["generator"] is not None:
        parts["generator"] = build(config["generator"], codec=parts["tokenizer"].codec)
    return build(config["stage"]["module"], **parts)


def build_objective(config: Mapping[str, Any]) -> Objective:
    return build(config["objective"])


def with_adversary(config: Mapping[str, Any], engine: Engine, worker: Worker) -> Engine:
    """The engine and, where the config names one, an adversary beside it."""
    if config["adversary"] is None:
        return engine
    torch.manual_seed(config["run"]["seed"])  # all ranks begin with the same discriminator
    return build(config["adversary"]).beside(engine, worker)


def frozen_tokenizer(config: Mapping[str, Any]) -> Any:
    """The tokenizer a generator run trains on; None for a tokenizer run."""
    if config["tokenizer_run"] is None:
        return None
    return load_model(Path(config["tokenizer_run"]) / "export").tokenizer


def settle(config: dict[str, Any]) -> dict[str, Any]:
    """The config with absolute paths, a run folder and a checked tokenizer, ready to be recorded.

    Raises:
        ConfigError: batches do not divide, or the tokenizer run is missing or does not fit.
    """
    config = json.loads(json.dumps(config))
    run = config["run"]
    run["root"] = str(Path(run["root"]).absolute())
    config["data"]["path"] = absolute(config["data"]["path"])
    config["run_dir"] = str(Path(run["root"]) / run["name"])
    for term, name in files_of_terms(config):  # workers may stand elsewhere
        term[name] = str(Path(term[name]).absolute())
    check_ranges(config)
    check_batches(run, config["worker"].get("num_workers", 1))
    if config["stage"]["name"] == "features":
        config["tokenizer"] = config["generator"] = config["tokenizer_run"] = None
        return config
    if config["stage"]["name"] == "tokenizer":
        config["tokenizer_run"] = None
        config["generator"] = None
        pretrained = config["tokenizer"].get("pretrained")
        if pretrained and Path(pretrained).is_dir():  # workers may stand elsewhere
            config["tokenizer"]["pretrained"] = str(Path(pretrained).absolute())
        return config
    if config["tokenizer_run"] is None and config["dry_run"]:
        return config
    if config["tokenizer_run"] is None:
        raise ConfigError(
            "stage=generator needs tokenizer_run=FOLDER of a finished run of stage=tokenizer"
        )
    config["tokenizer_run"] = str(Path(config["tokenizer_run"]).absolute())
    config["tokenizer"] = _tokenizer_node(config)
    return config


def files_of_terms(config: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Nodes of loss terms that are given files or folders, and by which arguments."""
    nodes = [entry["term"] for entry in config["objective"]["terms"].values()]
    return [(node, name) for node in nodes for name in ("features", "weights") if name in node]


AT_LEAST_ONE = {
    "run": (
        "steps",
        "global_batch",
        "micro_batch",
        "checkpoint_every",
        "keep_checkpoints",
        "validate_every",
        "validate_clips",
        "log_every",
    ),
    "data": ("num_frames", "height", "width", "prefetch"),
    "worker": ("num_workers",),
}
ABOVE_ZERO = {"data": ("fps", "block_mb"), "optimizer": ("lr", "clip_norm")}


def check_ranges(config: Mapping[str, Any]) -> None:
    """Facts are numbers that a run can have.

    Raises:
        ConfigError: one is not.
    """
    for least, groups in {"at least 1": AT_LEAST_ONE, "above 0": ABOVE_ZERO}.items():
        for group, names in groups.items():
            for name in names:
                value = config[group].get(name, 1)
                if value < 1 if groups is AT_LEAST_ONE else value <= 0:
                    raise ConfigError(f"{group}.{name}={value}: must be {least}")
    name = config["run"]["name"]  # ??? in a dry run
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*|\?\?\?", name):
        raise ConfigError(f"run.name={name}: needs letters or digits, and takes '.', '_' and '-'")


def check_batches(run: Mapping[str, Any], num_workers: int) -> None:
    """A global batch is whole micro-batches on every worker.

    Raises:
        ConfigError: it is not.
    """
    whole = num_workers * run["micro_batch"]
    if run["global_batch"] % whole:
        raise ConfigError(
            f"run.global_batch={run['global_batch']} is not a multiple of {num_workers} workers x "
            f"run.micro_batch={run['micro_batch']}; set one of them so that it divides"
        )


def run_facts(config: Mapping[str, Any]) -> tuple[RunFacts, DataFacts]:
    return RunFacts(**config["run"]), DataFacts(**config["data"])


def open_run(folder: str | Path) -> VideoModel:
    """The exported model of a run.

    Raises:
        ConfigError: there is no such run, it has not exported yet, or this version cannot load it.
    """
    export = Path(folder) / "export"
    if not (export / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds no exported model; train it with "
            f"python -m pipelines.train run.name={Path(folder).name} ..."
        )
    stage = json.loads((export / "config.json").read_text())["stage"]
    if stage == "features":
        raise ConfigError(f"{folder} is a run of stage={stage}, which makes no videos")
    try:
        return load_model(export)
    except (TypeError, ValueError) as error:  # of another version: other arguments, other weights
        raise ConfigError(f"{error}; train the run again with this version") from error


def _tokenizer_node(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the trained tokenizer, which replaces the one that was composed."""
    folder, data = config["tokenizer_run"], config["data"]
    export = Path(folder) / "export" / "config.json"
    if not export.is_file():
        raise ConfigError(
            f"tokenizer_run={folder} holds no finished tokenizer; train one with "
            f"python -m pipelines.train stage=tokenizer run.name={Path(folder).name} ..."
        )
    known = json.loads(export.read_text())
    if known["tokenizer"] is None:
        raise ConfigError(f"tokenizer_run={folder} is of stage={known['stage']}, which has none")
    if known["generator"] is not None:
        raise ConfigError(f"tokenizer_run={folder} is a generator's run; name its tokenizer's run")
    wanted = {name: data[name] for name in ("num_frames", "fps", "height", "width")}
    differing = [
        f"data.{name}={value} but the tokenizer knows {known['window'][name]}"
        for name, value in wanted.items()
        if value != known["window"][name]
    ]
    if differing:
        raise ConfigError(
            f"the latent of tokenizer_run={folder} does not fit: {'; '.join(differing)}"
        )
    return known["tokenizer"]
