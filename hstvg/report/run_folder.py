"""Reads a run folder into one record; what is not there yet is empty, what is broken is named."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Points = tuple[tuple[float, float], ...]
"""(step, value), in order of steps."""


@dataclass(frozen=True, kw_only=True)
class History:
    """metrics.jsonl by key."""

    series: Mapping[str, Points]
    """Finite values only."""
    non_finite: Mapping[str, int]
    """How many values of a key were NaN or infinite."""
    steps: int
    samples: int
    """Clips seen."""
    unreadable_lines: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A video the run made, with the prompt that asked for it."""

    path: Path
    prompt: str


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """All that the page says about one run."""

    path: Path
    config: Mapping[str, Any]
    config_text: str
    overrides: tuple[str, ...]
    env: Mapping[str, Any]
    lineage: Mapping[str, Any]
    history: History
    samples: tuple[Sample, ...]
    scores: Mapping[str, Any]
    """eval/metrics.json; empty before an evaluation."""
    rows: tuple[Mapping[str, Any], ...]


def read_run(path: Path) -> RunFolder:
    """The run in `path`.

    FileNotFoundError if it holds no config.yaml, ValueError if a file of it cannot be read; both
    in one line with the next command.
    """
    config_text = _read_config(path)
    config = _parse_config(path, config_text)
    return RunFolder(
        path=path,
        config=config,
        config_text=config_text,
        overrides=_read_lines(path / "overrides.txt"),
        env=_read_json(path / "env.json", {}),
        lineage=_read_json(path / "lineage.json", {}),
        history=read_history(path / "metrics.jsonl"),
        samples=_read_samples(path / "samples"),
        scores=_read_json(path / "eval" / "metrics.json", {}),
        rows=tuple(_read_json(path / "eval" / "rows.json", [])),
    )


def read_history(path: Path) -> History:
    """The metrics of a run; a line torn by a kill is skipped and counted."""
    lines = _read_lines(path)
    records = [record for record in map(_parse_record, lines) if record is not None]
    by_step = {record["step"]: record for record in records}  # a step written again counts once
    ordered = [by_step[step] for step in sorted(by_step)]
    values: dict[str, list[tuple[float, float]]] = {}
    for record in ordered:
        for key, value in record.items():
            if isinstance(value, int | float) and key not in ("step", "samples"):
                values.setdefault(key, []).append((float(record["step"]), float(value)))
    return History(
        series={k: tuple(p for p in v if math.isfinite(p[1])) for k, v in values.items()},
        non_finite={k: sum(not math.isfinite(p[1]) for p in v) for k, v in values.items()},
        steps=int(ordered[-1]["step"]) if ordered else 0,
        samples=int(ordered[-1].get("samples", 0)) if ordered else 0,
        unreadable_lines=len(lines) - len(records),
    )


def find_tokenizer_run(run: RunFolder) -> Path | None:
    """The folder of the tokenizer this generator was trained on, if it is still to be found."""
    named = run.config.get("tokenizer_run")
    if not named:
        return None
    # Beside the run as well: a whole `runs` folder may have been copied from a cluster.
    candidates = (Path(named), run.path.resolve().parent / Path(named).name)
    return next((path for path in candidates if (path / "metrics.jsonl").is_file()), None)


def _read_config(path: Path) -> str:
    try:
        return (path / "config.yaml").read_text()
    except OSError:
        raise FileNotFoundError(
            f"{path} is no run folder (it has no config.yaml); train one first: "
            "python -m pipelines.train stage=tokenizer data.path=DIR run.name=NAME"
        ) from None


def _parse_config(path: Path, text: str) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(
            f"{path / 'config.yaml'} holds no configuration; run the training command again"
        )
    return config


def _read_lines(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    lines = path.read_text(errors="replace").splitlines()
    return tuple(line for line in lines if line.strip())


def _read_json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        value = json.loads(path.read_text())
    except ValueError:
        value = None
    if not isinstance(value, type(default)):
        again = "pipelines.evaluate" if path.parent.name == "eval" else "pipelines.train"
        raise ValueError(f"{path} cannot be read; write it anew: python -m {again}")
    return value


def _parse_record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _read_samples(folder: Path) -> tuple[Sample, ...]:
    return tuple(
        Sample(path=path, prompt=" ".join(_read_lines(path.with_suffix(".txt"))))
        for path in sorted(folder.glob("*.mp4"))
    )
