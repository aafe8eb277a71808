"""The order log: which sample every worker trained at every step, and the audit that reads it."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

from hstvg.runtime import checkpoint
from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.index import read_index
from hstvg.runtime.shard import replace_file

FOLDER = "order"


class OrderLog:
    """order/rank_RRRRR.jsonl of a run: one line {"step", "position", "key"} per clip trained.

    A line also has `substitute` where another sample was shown in the place of a damaged one. Lines
    of steps that a restart trains again are taken back, whatever rank wrote them.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / FOLDER
        self.file: IO[str] | None = None

    def begin(self, first_step: int, rank: int, world_size: int) -> None:
        """Forget what came after `first_step` steps, and go on from there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.folder / f"rank_{rank:05d}.jsonl"
        keep_until(own, first_step)
        if rank == 0:  # Ranks that there are no more have nobody else to do it.
            for file in sorted(self.folder.glob("rank_*.jsonl")):
                if int(file.stem.removeprefix("rank_")) >= world_size:
                    keep_until(file, first_step)
        self.file = own.open("a")

    def write(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        assert self.file is not None
        names = ("position", "key", "substitute")
        for position, key, substitute in zip(*(arrays[name] for name in names), strict=True):
            line = {"step": step, "position": int(position), "key": key}
            line |= {"substitute": substitute} if substitute else {}
            self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def sync(self) -> None:
        """Bring all lines to the disk."""
        assert self.file is not None
        os.fsync(self.file.fileno())


def read_records(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file, none if there is none; a kill may have torn the last line."""
    if not file.exists():
        return
    with file.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def keep_until(file: Path, step: int) -> list[dict[str, Any]]:
    """The records of a JSONL file up to a step; what comes after, or is torn, is cut off."""
    kept = [record for record in read_records(file) if record["step"] <= step]
    if file.exists():
        with replace_file(file) as out:
            out.writelines(json.dumps(record).encode() + b"\n" for record in kept)
    return kept


def audit(run_dir: Path) -> str:
    """Prove from the order log that every position of the plan was trained exactly once.

    Covers the steps up to the newest checkpoint; later ones will be trained again.

    Raises:
        ConfigError: this is no run, or it kept no log.
        CommandError: a position was left out, repeated or held another sample; names the first.
    """
    from hstvg.runtime.stream import open_feed

    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir} is no run folder")
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    files = sorted((run_dir / FOLDER).glob("rank_*.jsonl"))
    newest = checkpoint.newest(run_dir / "checkpoints")
    if not files or newest is None:
        raise ConfigError(
            f"{run_dir} has no {'checkpoint' if files else 'order log'}; train it with "
            "run.log_samples=true"
        )
    manifest = checkpoint.read_manifest(newest)
    run, data = RunFacts(**config["run"]), DataFacts(**config["data"])
    if read_index(data.path).hash != manifest["index_hash"]:
        raise CommandError(f"{data.path} is not the data set that {run_dir} was trained on")
    feed = open_feed(run, data)
    trained = _by_step(files, manifest["step"])
    substituted = 0
    for step in range(1, manifest["step"] + 1):
        batch = feed.plan.batch(step - 1)
        keys = feed.index.table.column("key").take(batch.rows).to_pylist()
        records = trained.get(step, [])
        substituted += sum("substitute" in record for record in records)
        fault = _compare(dict(zip(batch.positions.tolist(), keys, strict=True)), records)
        if fault:
            raise CommandError(f"audit of {run_dir} failed at step {step}: {fault}")
    return (
        f"audit of {run_dir} passed: {manifest['step']} steps, {manifest['samples']} positions, "
        f"each trained exactly once ({substituted} by a substitute)"
    )


def _compare(planned: Mapping[int, str], records: list[dict[str, Any]]) -> str | None:
    """The first thing wrong with the clips of a step; None if nothing."""
    seen: set[int] = set()
    for record in sorted(records, key=lambda record: record["position"]):
        position, key = record["position"], record["key"]
        if position not in planned:
            return f"position {position} ({key}) belongs to another step"
        if position in seen:
            return f"position {position} ({key}) was trained twice"
        if planned[position] != key:
            return f"position {position} was {key}, planned was {planned[position]}"
        seen.add(position)
    left = sorted(planned.keys() - seen)
    return f"position {left[0]} ({planned[left[0]]}) was not trained" if left else None


def _by_step(files: list[Path], last_step: int) -> dict[int, list[dict[str, Any]]]:
    steps: dict[int, list[dict[str, Any]]] = {}
    for file in files:
        for record in read_records(file):
            if record["step"] <= last_step:
                steps.setdefault(record["step"], []).append(record)
    return steps
