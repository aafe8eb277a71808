"""The order log: which sample every worker trained at every step, and the audit that reads it."""

import heapq
import json
import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

from hstvg.runtime import checkpoint
from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.index import read_index

FOLDER = "order"
BLOCK = 1 << 16
"""Bytes; many lines."""


class OrderLog:
    """order/rank_RRRRR.jsonl of a run: one line {"step", "position", "key"} per clip trained.

    A line also has `substitute` where another sample was shown in the place of a damaged one. Lines
    of steps that a restart trains again are taken back, whatever rank wrote them.

    Args:
        keep: whether to write; what is there is taken back in any case.
    """

    def __init__(self, run_dir: Path, *, keep: bool) -> None:
        self.folder = run_dir / FOLDER
        self.keep = keep
        self.file: IO[str] | None = None

    def begin(self, first_step: int, rank: int, world_size: int) -> None:
        """Forget what came after `first_step` steps, and go on from there."""
        own = self.folder / f"rank_{rank:05d}.jsonl"
        keep_until(own, first_step)
        if rank == 0:  # Ranks that there are no more have nobody else to do it.
            for file in sorted(self.folder.glob("rank_*.jsonl")):
                if int(file.stem.removeprefix("rank_")) >= world_size:
                    keep_until(file, first_step)
        if self.keep:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = own.open("a")

    def write(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        if self.file is None:
            return
        names = ("position", "key", "substitute")
        for position, key, substitute in zip(*(arrays[name] for name in names), strict=True):
            line = {"step": step, "position": int(position), "key": key}
            line |= {"substitute": substitute} if substitute else {}
            self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def sync(self) -> None:
        """Bring all lines to the disk."""
        if self.file is not None:
            os.fsync(self.file.fileno())


def read_records(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file, none if there is none; what a crash has torn is left out."""
    if not file.exists():
        return
    with file.open("rb") as lines:
        for line in lines:
            if (record := _record(line)) is not None:
                yield record


def keep_until(file: Path, step: int) -> None:
    """Cut off a JSONL file, whose steps ascend, what comes after a step or is torn.

    It looks from the end: of a long run's file only what is cut off is read.
    """
    if not file.exists():
        return
    with file.open("r+b") as lines:
        begin = lines.seek(0, os.SEEK_END)
        while begin > 0:
            begin = max(0, begin - BLOCK)
            lines.seek(begin)
            if begin:
                lines.readline()  # the rest of a line
            record = _record(lines.readline())
            if record is not None and record["step"] <= step:
                break
        lines.seek(begin)
        if begin:
            lines.readline()
        end = lines.tell()
        while (record := _record(line := lines.readline())) and record["step"] <= step:
            end += len(line)
        lines.truncate(end)


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a whole line."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:  # a block of zeros, as a file system leaves it after a crash
        return None


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
    substituted = 0
    for step, records in _by_step(files, manifest["step"]):
        batch = feed.plan.batch(step - 1)
        keys = feed.index.table.column("key").take(batch.rows).to_pylist()
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
    if not records:
        return "nothing was logged; the run had run.log_samples=false"
    left = sorted(planned.keys() - seen)
    return f"position {left[0]} ({planned[left[0]]}) was not trained" if left else None


def _by_step(files: list[Path], last_step: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The records of every step from the first to the last, of all ranks."""

    def step_of(record: dict[str, Any]) -> int:
        return record["step"]

    merged = heapq.merge(*map(read_records, files), key=step_of)
    found, records = 0, []
    groups = ((step, list(group)) for step, group in groupby(merged, key=step_of))
    for step in range(1, last_step + 1):
        while found < step:
            found, records = next(groups, (last_step + 1, []))
        yield step, records if found == step else []
