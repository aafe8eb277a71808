"""Puts the page together: reads the run, chooses what to show, fills the template."""

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hstvg.report import curves
from hstvg.report.run_folder import History, RunFolder, find_tokenizer_run, read_history, read_run
from hstvg.report.scores import CONDITIONS, SCALE_SCORES, Group, Split, groups, scales, splits
from hstvg.report.videos import Shelf, Video

ROW_COLUMNS = ("real", "reconstruction", "sample", "reference", "like_reference")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One clip as it was, as the tokenizer gives it back, and as its caption was generated."""

    caption: str
    split: str
    videos: tuple[tuple[str, Video], ...]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    FileNotFoundError or ValueError, in one line, if the folder holds no run or a damaged one.
    """
    run = read_run(run_dir)
    target = run_dir / "report.html"
    partial = run_dir / f".report.html.{os.getpid()}"
    try:
        partial.write_text(render(run), encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def render(run: RunFolder) -> str:
    """The whole page as one string that refers to nothing outside itself but files it links."""
    shelf = Shelf(run.path)
    rows = _rows(run, shelf)
    shown_splits, shown_groups = splits(run.scores), groups(run.scores)
    tokenizer = _tokenizer_history(run)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            name=_name(run),
            stage=_stage(run),
            facts=_facts(run),
            tiles=_tiles(run, shown_splits, shown_groups),
            samples=[
                (s.prompt, shelf.video(s.path, _alt("sample", s.prompt))) for s in run.samples
            ],
            rows=rows,
            splits=shown_splits,
            groups=shown_groups,
            scales=scales(run.scores),
            scale_scores=SCALE_SCORES,
            num_clips=run.scores.get("num_clips"),
            conditions=_conditions(shown_splits),
            charts=curves.charts(run.history),
            tokenizer_charts=curves.charts(tokenizer, ("loss", "val")) if tokenizer else (),
            geometry=curves,
            history=run.history,
            command=_command(run.overrides),
            run=run,
            payload=_payload(run, tokenizer),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def _conditions(shown: Sequence[Split]) -> dict[str, str]:
    """What the conditions mean that are on the page."""
    scores = (score for split in shown for panel in split.panels for score in panel.scores)
    used = {score.name for score in scores}
    return {name: meaning for name, meaning in CONDITIONS.items() if name in used}


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["number"] = curves.number
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, default=str)
    return environment


def _rows(run: RunFolder, shelf: Shelf) -> tuple[Row, ...]:
    return tuple(
        Row(
            caption=str(row.get("caption", "")),
            split=str(row.get("split", "")),
            videos=tuple(
                (name, shelf.video(run.path / "eval" / row[name], _alt(name, row.get("caption"))))
                for name in ROW_COLUMNS
                if row.get(name)
            ),
        )
        for row in run.rows
    )


def _alt(kind: str, caption: object) -> str:
    return f"{kind}: {caption}" if caption else kind


def _name(run: RunFolder) -> str:
    return str(_dig(run.config, "run.name") or run.path.resolve().name)


def _stage(run: RunFolder) -> str:
    stage = run.config.get("stage")
    if isinstance(stage, str):
        return stage
    return "generator" if run.config.get("tokenizer_run") else "tokenizer"


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    planned = _dig(run.config, "run.steps")
    steps = f"{run.history.steps:,}" + (f" of {planned:,}" if isinstance(planned, int) else "")
    facts = [
        ("steps", steps),
        ("clips seen", f"{run.history.samples:,}"),
        ("time in steps", _training_time(run.history)),
        ("data", str(_dig(run.config, "data.path") or "")),
        ("hardware", _hardware(run.env.get("machine"))),
        ("code", str(run.env.get("git") or "")),
        ("last step", _last_written(run.path / "metrics.jsonl")),
    ]
    return [(label, value) for label, value in facts if value]


def _tiles(run: RunFolder, split: Sequence[Split], group: Sequence[Group]) -> list[Tile]:
    tiles = [
        Tile(
            label=f"{panel.attribute}, {split[0].name}",
            value=score.value,
            detail=f"{score.interval}, n {score.n}"
            + (f", chance {curves.number(panel.chance)}" if panel.chance is not None else ""),
        )
        for panel in (split[0].panels if split else ())
        for score in panel.scores
        if score.name == "generated"
    ]
    tiles += [
        Tile(
            label=f"{g.name} {score.name}",
            value=score.value,
            detail=f"{score.interval}, n {score.n}",
        )
        for g in group
        for score in g.scores
    ]
    return tiles[:4] or _loss_tiles(run.history)


def _loss_tiles(history: History) -> list[Tile]:
    losses = [(k, v) for k, v in history.series.items() if v and k.split("/")[0] == "loss"]
    return [
        Tile(label=key, value=curves.number(points[-1][1]), detail=f"at step {points[-1][0]:,.0f}")
        for key, points in losses[:4]
    ]


def _training_time(history: History) -> str:
    seconds = sum(value for _, value in history.series.get("perf/step_s", ()))
    if not seconds:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _command(overrides: Sequence[str]) -> str:
    parts = ["python -m pipelines.train", *map(shlex.quote, overrides)]
    return " \\\n    ".join(parts)


def _tokenizer_history(run: RunFolder) -> History | None:
    folder = find_tokenizer_run(run)
    return read_history(folder / "metrics.jsonl") if folder else None


def _payload(run: RunFolder, tokenizer: History | None) -> Any:
    def thinned(history: History) -> dict[str, Any]:
        return {key: curves.thin(points) for key, points in history.series.items()}

    payload = {
        "run": _name(run),
        "stage": _stage(run),
        "steps": run.history.steps,
        "samples": run.history.samples,
        "scores": run.scores,
        "curves": thinned(run.history),
        "tokenizer_curves": thinned(tokenizer) if tokenizer else {},
        "config": run.config,
        "overrides": run.overrides,
        "env": run.env,
        "lineage": run.lineage,
    }
    return _plain(payload)


def _plain(value: Any) -> Any:
    """`value` as strict JSON: NaN and infinity have no place in it and become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _dig(tree: Mapping[str, Any], dotted: str) -> Any:
    value: Any = tree
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _hardware(machine: Any) -> str:
    if not isinstance(machine, Mapping):
        return ""
    gpus = Counter(machine.get("gpus") or ())
    accelerators = [f"{count} x {name}" for name, count in gpus.items()]
    return ", ".join(accelerators or [f"{machine.get('cpus')} CPUs", f"{machine.get('processor')}"])


def _last_written(path: Path) -> str:
    if not path.is_file():
        return ""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
