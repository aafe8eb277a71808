"""From a source of clips to a finished data set: shards made by Ray tasks, an index, a summary.

A data set is built in a hidden folder beside its final place and renamed when it is whole, so
`out` either does not exist or is complete. The same source gives the same bytes, whatever the
timing of the tasks: a shard is a fixed range of items.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.shard import Sample, replace_file, write_shard
from hstvg.runtime.source import Item, Refused, ShapeSource, Source
from hstvg.runtime.source_folder import FolderSource

__all__ = ["FolderSource", "ShapeSource", "Summary", "ingest", "preview"]

VERSION = 1
"""Of the data set folder's layout, in dataset.json."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a finished data set holds and what was refused on the way."""

    out: Path
    num_clips: int
    num_bytes: int
    """Of all shards."""
    splits: dict[str, int]
    refused: dict[str, int]
    """Kind of reason -> clips."""
    already_there: bool = False

    def __str__(self) -> str:
        splits = ", ".join(f"{number} {name}" for name, number in self.splits.items())
        done = "already prepared, nothing to do" if self.already_there else "ready"
        lines = [f"{self.out} {done}: {self.num_clips} clips ({splits}), {_size(self.num_bytes)}"]
        if self.refused:
            total, kinds = sum(self.refused.values()), _count_line(self.refused)
            lines.append(f"refused {total}: {kinds}; see {self.out / 'rejected.jsonl'}")
        return "\n".join(lines)


def preview(source: Source, out: Path, clips_per_shard: int) -> str:
    """What `ingest` would do, in one line.

    Raises:
        ConfigError: the source has no items, or `out` holds something else.
    """
    items = _items(source, clips_per_shard)
    if existing := _finished(out, _identity(source, items, clips_per_shard)):
        return str(existing)
    num_shards = -(-len(items) // clips_per_shard)
    size = _size(source.estimate_bytes(items))
    return f"{out} would get {len(items)} clips in {num_shards} shards, about {size}"


def ingest(source: Source, out: Path, clips_per_shard: int, num_cpus: int | None = None) -> Summary:
    """Make the data set `out` from `source` on Ray and say what it holds.

    Raises:
        ConfigError: the source has no items, or `out` holds something else; nothing was started.
        CommandError: every clip was refused, no Ray, or the disk failed; `out` does not exist.
    """
    from hstvg.runtime.cluster import connect

    out = out.expanduser().resolve()
    items = _items(source, clips_per_shard)
    identity = _identity(source, items, clips_per_shard)
    if existing := _finished(out, identity):
        return existing
    connect(num_cpus)
    with _staging(out) as folder:
        shards = _make_shards(source, items, clips_per_shard, folder)
        facts = {
            "version": VERSION,
            "identity": identity,
            "transform": _transform(source),
            "clips_per_shard": clips_per_shard,
        }
        _finish(folder, shards, facts)
    summary = _finished(out, identity)
    assert summary is not None
    return Summary(**{**vars(summary), "already_there": False})


# ---- the work of one shard --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """What one task reports: the rows of its shard and all that it refused."""

    rows: list[dict[str, Any]]
    rejected: list[dict[str, str]]
    num_bytes: int = 0
    sha256: str = ""


def _make_shard(source: Source, items: Sequence[Item], path: Path) -> _Shard:
    rejected: list[dict[str, str]] = []

    def accepted() -> Iterator[Sample]:
        for item in items:
            try:
                yield source.sample(item)
            except Refused as refusal:
                rejected.append({"source": item["name"], "reason": str(refusal)})

    rows = write_shard(path, accepted())
    if not rows:
        return _Shard(rows=[], rejected=rejected)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _Shard(rows=rows, rejected=rejected, num_bytes=path.stat().st_size, sha256=digest)


def _make_shards(
    source: Source, items: Sequence[Item], clips_per_shard: int, folder: Path
) -> list[_Shard]:
    """All shards, in order, each made by one Ray task."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(_make_shard)
    held = ray.put(source)
    starts = range(0, len(items), clips_per_shard)
    progress = _Progress(total_clips=len(items), total_shards=len(starts))
    done: dict[int, _Shard] = {}
    running: dict[Any, int] = {}
    waiting = iter(enumerate(starts))
    # Enough tasks to keep every CPU busy; the rest waits here and not in Ray's memory.
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    try:
        while len(done) < len(starts):
            for number, start in waiting:
                path = folder / "shards" / f"{number:06d}.tar"
                part = items[start : start + clips_per_shard]
                running[task.remote(held, part, path)] = number
                if len(running) >= most:
                    break
            (ready,), _ = ray.wait(list(running))
            shard = ray.get(ready)
            done[running.pop(ready)] = shard
            progress.advance(shard)
    except RayTaskError as error:
        if not isinstance(error.cause, OSError):
            raise
        raise CommandError(f"cannot write the data set: {error.cause}") from error
    except RayError as error:
        raise CommandError(f"a worker was lost ({_one_line(error)}); try again") from error
    finally:
        _cancel(list(running))
    return [done[number] for number in sorted(done)]


def _cancel(tasks: Sequence[Any]) -> None:
    """End tasks that nobody waits for any more, before the folder they write in goes."""
    import ray

    for task in tasks:
        with suppress(Exception):
            ray.cancel(task, force=True)
    for task in tasks:
        with suppress(Exception):
            ray.get(task, timeout=10)


def _finish(folder: Path, shards: Sequence[_Shard], facts: dict[str, Any]) -> None:
    """Write the lists beside the shards; dataset.json, the mark of a whole data set, last."""
    from hstvg.runtime.index import write_index

    rows = [row for shard in shards for row in shard.rows]
    rejected = [entry for shard in shards for entry in shard.rejected]
    refused = Counter(entry["reason"].split(":")[0] for entry in rejected)
    if not rows:
        example = "{source}: {reason}".format(**rejected[0])
        raise CommandError(
            f"no clip was accepted, so no data set was written: {_count_line(refused)}; "
            f"for example {example}"
        )
    with replace_file(folder / "rejected.jsonl") as file:
        for entry in rejected:
            # ASCII with escapes: the name of a file need not be valid text.
            file.write(json.dumps(entry).encode() + b"\n")
    index = write_index(folder, rows)
    record = {
        **facts,
        "num_clips": len(rows),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "splits": dict(sorted(Counter(row["split"] for row in rows).items())),
        "refused": dict(refused.most_common()),
        "index_hash": index.hash,
        "shards": {
            shard.rows[0]["shard"]: {
                "num_clips": len(shard.rows),
                "num_bytes": shard.num_bytes,
                "sha256": shard.sha256,
            }
            for shard in shards
            if shard.rows
        },
    }
    with replace_file(folder / "dataset.json") as file:
        file.write(json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")


# ---- where a data set goes --------------------------------------------------------------------


def _items(source: Source, clips_per_shard: int) -> list[Item]:
    if clips_per_shard < 1:
        raise ConfigError(f"clips_per_shard={clips_per_shard}: must be at least 1")
    return source.items()


def _transform(source: Source) -> dict[str, Any]:
    fields: dict[str, Any] = asdict(source)  # pyright: ignore[reportArgumentType]
    return {"source": type(source).__name__, **fields}


def _identity(source: Source, items: Sequence[Item], clips_per_shard: int) -> str:
    """Names what a data set is made from: the settings and, for files, their sizes and times."""
    digest = hashlib.sha256()
    for said in ([VERSION, _transform(source), clips_per_shard], *items):
        digest.update(json.dumps(said, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _finished(out: Path, identity: str) -> Summary | None:
    """The summary of the data set at `out` if it is the one wanted, None if there is none."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        record = json.loads((out / "dataset.json").read_bytes())
    except (OSError, ValueError):
        raise ConfigError(f"{out} exists and is no data set; choose another out=") from None
    if record.get("identity") != identity:
        raise ConfigError(
            f"{out} holds a data set made from another source or with other settings; "
            "remove it or choose another out="
        )
    names = ("num_clips", "num_bytes", "splits", "refused")
    return Summary(out=out, already_there=True, **{name: record[name] for name in names})


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` on success and vanishes on failure.

    Raises:
        CommandError: another process is making `out` now, or the place cannot be written.
    """
    folder = out.with_name(f".{out.name}.prepare-partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / "lock")
        shutil.rmtree(folder / "dataset", ignore_errors=True)  # left by a killed run
        (folder / "dataset" / "shards").mkdir(parents=True)
    except BlockingIOError as error:
        raise CommandError(f"another prepare is writing {out} now; wait for it") from error
    except OSError as error:
        raise CommandError(f"cannot write {out}: {error}") from error
    with lock:
        try:
            yield folder / "dataset"
            os.replace(folder / "dataset", out)
        except OSError as error:
            raise CommandError(f"cannot write {out}: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _lock(path: Path) -> IO[str]:
    """An open file that no second process can have. Raises BlockingIOError if one has it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        pass  # A file system without locks: not to start twice is then the person's care.
    return file


# ---- words for people -------------------------------------------------------------------------


def _count_line(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in counts.items())


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class _Progress:
    """A bar on a terminal; elsewhere a line per twentieth of the shards."""

    def __init__(self, *, total_clips: int, total_shards: int) -> None:
        self.total_clips = total_clips
        self.total_shards = total_shards
        self.clips = self.refused = self.shards = 0
        self.start = time.monotonic()

    def advance(self, shard: _Shard) -> None:
        self.shards += 1
        self.refused += len(shard.rejected)
        self.clips += len(shard.rows) + len(shard.rejected)
        last = self.shards == self.total_shards
        if sys.stderr.isatty():
            filled = 30 * self.clips // self.total_clips
            bar = "#" * filled + "." * (30 - filled)
            print(
                f"\r[{bar}] {self._line()}", end="\n" if last else "", file=sys.stderr, flush=True
            )
        elif last or self.shards % max(1, self.total_shards // 20) == 0:
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        passed_s = max(time.monotonic() - self.start, 1e-6)
        rate = self.clips / passed_s
        left_s = (self.total_clips - self.clips) / rate if rate else 0.0
        return (
            f"shard {self.shards}/{self.total_shards}  clip {self.clips}/{self.total_clips}  "
            f"refused {self.refused}  {rate:.0f} clips/s  {left_s:.0f} s left "
        )
