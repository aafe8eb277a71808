"""Checkpoints: written by all ranks, whole or not at all, and verified before they are believed.

Every rank writes its files into a hidden staging folder and a digest of each; when all are done,
rank 0 writes manifest.json and renames the folder. A folder with a step's name is therefore whole,
unless its storage lied: the digests say so, it is set aside, and the one before it is used.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

FORMAT = 2


@runtime_checkable
class Group(Protocol):
    """The ranks that write together."""

    rank: int
    world_size: int

    def barrier(self) -> None: ...


def checkpoint_name(step: int) -> str:
    return f"step_{step:09d}"


@contextmanager
def writing(
    folder: Path, step: int, facts: Mapping[str, Any], group: Group, keep: int
) -> Iterator[Path]:
    """A staging folder for this rank's files, committed when all ranks have left the block.

    Args:
        folder: the run's checkpoints folder, on storage that all ranks share.
        facts: what goes into the manifest beside digests and step.
        keep: newest checkpoints to keep; older ones are removed after the commit.
    """
    staging = folder / f".{checkpoint_name(step)}.partial"
    if group.rank == 0:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    group.barrier()
    yield staging
    group.barrier()
    if group.rank == 0:
        _commit(staging, folder / checkpoint_name(step), step, facts, group.world_size)
        _retire(folder, keep)
    group.barrier()


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose digests hold; a damaged one is renamed *.corrupt and named."""
    for candidate in reversed(_all(folder)):
        fault = check(candidate)
        if fault is None:
            return candidate
        aside = candidate.with_name(candidate.name + ".corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        candidate.rename(aside)
        print(f"checkpoint {candidate} set aside: {fault}", file=sys.stderr, flush=True)
    return None


def check(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing."""
    try:
        manifest = read_manifest(checkpoint)
        for name, digest in manifest["files"].items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if _digest(checkpoint / name) != digest:
                return f"{name} does not match its digest"
    except (OSError, ValueError, KeyError) as error:
        return f"manifest.json is unreadable ({error})"
    return None


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "manifest.json").read_text())


def _commit(
    staging: Path, final: Path, step: int, facts: Mapping[str, Any], world_size: int
) -> None:
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    manifest = {
        "format": FORMAT,
        "step": step,
        "world_size": world_size,
        **facts,
        "files": {str(path.relative_to(staging)): _digest(path) for path in files},
    }
    (staging / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _sync(staging / "manifest.json")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(staging, final)
    _sync(final.parent)


def _retire(folder: Path, keep: int) -> None:
    for old in _all(folder)[: -max(keep, 1)]:
        shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.glob(".step_*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if path.suffix != ".corrupt")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
