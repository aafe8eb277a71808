"""From a source of clips to a finished data set: shards made by Ray tasks, an index, a summary.

The same source gives the same bytes, whatever the timing of the tasks, and whether or not the work
was interrupted: a shard is a fixed range of items.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hstvg.runtime.errors import ConfigError
from hstvg.runtime.shard import LARGEST_MEMBER, Sample, replace_file, write_shards
from hstvg.runtime.source import DISK_FULL, Found, Item, Refused, Source, one_line, size_text
from hstvg.runtime.staging import NothingAccepted, staging
from hstvg.runtime.work import Result, counts, work

VERSION = 2
"""Of the data set folder's layout, in dataset.json."""
DATASET = "dataset"
"""In the staging folder: what becomes the data set."""
BATCH = 8
"""Items per task that answers a question."""

Made = tuple[list[Result], dict[str, Any]]
"""What every part gave (rows, rejected, shards), and what dataset.json is to say of the whole."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a finished data set holds and what was refused on the way."""

    out: Path
    num_clips: int
    num_bytes: int
    """Of all shards."""
    splits: dict[str, int]
    refused: dict[str, int]
    """Kind of reason -> how many."""
    already_there: bool = False

    def __str__(self) -> str:
        splits = ", ".join(f"{number} {name}" for name, number in self.splits.items())
        done = "already prepared, nothing to do" if self.already_there else "ready"
        size = size_text(self.num_bytes)
        lines = [f"{self.out} {done}: {self.num_clips} clips ({splits}), {size}"]
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
    if existing := finished(out, _identity(source, items, clips_per_shard)):
        return str(existing)
    refused = counts([{"reason": item["refusal"]} for item in items if "refusal" in item])
    at_once = f"; refused at once: {_count_line(refused)}" if refused else ""
    return f"{out} would get {source.outlook(items, clips_per_shard)}{at_once}"


def ingest(source: Source, out: Path, clips_per_shard: int, num_cpus: int | None = None) -> Summary:
    """Make the data set `out` from `source` on Ray, or go on making it, and say what it holds.

    Raises:
        ConfigError: the source has no items, or `out` holds something else; nothing was started.
        CommandError: every clip was refused, no Ray, or the disk failed; `out` does not exist.
    """
    items = _items(source, clips_per_shard)

    def make(folder: Path) -> Made:
        settled = source.settle(items, _Asker(folder / "answers"))
        job = ShardJob(source=source, folder=folder / DATASET, clips_per_shard=clips_per_shard)
        results = work(job, _partition(settled, clips_per_shard), folder / "records")
        return results, {"transform": _transform(source), "clips_per_shard": clips_per_shard}

    return grow(out, _identity(source, items, clips_per_shard), make, num_cpus)


def grow(
    out: Path, identity: str, make: Callable[[Path], Made], num_cpus: int | None = None
) -> Summary:
    """Let `make` write the shards of the data set `out`, then make it whole.

    Args:
        identity: of all that the data set is made from.
        make: gets the staging folder; its shards belong into DATASET/shards there, and its records
            beside.

    Raises:
        ConfigError, CommandError: as `ingest`.
    """
    from hstvg.runtime.cluster import connect

    out = out.expanduser().resolve()
    if existing := finished(out, identity):
        return existing
    connect(num_cpus)
    with staging(out, identity) as folder:
        dataset = folder / DATASET
        (dataset / "shards").mkdir(parents=True, exist_ok=True)
        results, facts = make(folder)
        _finish(dataset, results, {"version": VERSION, "identity": identity, **facts})
        os.replace(dataset, out)
    summary = finished(out, identity)
    assert summary is not None
    return Summary(**{**vars(summary), "already_there": False})


# ---- the work of one part ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Makes the shards of a part, or index rows for the shard that its items lie in."""

    source: Source
    folder: Path
    clips_per_shard: int
    name: str = "shards"

    def run(self, number: int, items: Sequence[Item]) -> Result:
        rejected: list[dict[str, str]] = []
        outcomes = self._accepted(items, rejected)
        if any("shard" in item for item in items):
            found = [dict(outcome) for outcome in outcomes if not isinstance(outcome, Sample)]
            shards = [found] if found else []
        else:
            samples = (outcome for outcome in outcomes if isinstance(outcome, Sample))
            path = self.folder / "shards" / f"{number:06d}.tar"
            shards = write_shards(path, samples, self.clips_per_shard)
        return {
            "rows": [row for rows in shards for row in rows],
            "rejected": rejected,
            "shards": {rows[0]["shard"]: shard_facts(self.folder, rows) for rows in shards},
        }

    def attempt(self, item: Item) -> None:
        for _ in self._accepted([item], []):
            pass

    def holds(self, result: Result) -> bool:
        return shards_there(self.folder, result)

    def _accepted(
        self, items: Sequence[Item], rejected: list[dict[str, str]]
    ) -> Iterator[Sample | Found]:
        for item in items:
            for outcome in _outcomes(self.source, item):
                if isinstance(outcome, Refused):
                    rejected.append({"source": item["name"], "reason": str(outcome)})
                else:
                    yield outcome


def shard_facts(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What dataset.json says of the shard that these rows of the index lie in."""
    path = folder / rows[0]["shard"]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"num_clips": len(rows), "num_bytes": path.stat().st_size, "sha256": digest}


def shards_there(folder: Path, result: Result) -> bool:
    """Whether the shards of a result are as large as they were when it was written."""
    with suppress(OSError):
        return all(
            (folder / shard).stat().st_size == facts["num_bytes"]
            for shard, facts in result["shards"].items()
        )
    return False


def _outcomes(source: Source, item: Item) -> Iterator[Sample | Found | Refused]:
    """What an item gives; whatever goes wrong with it is a refusal and stops nothing else."""
    try:
        if "refusal" in item:
            raise Refused(item["refusal"])
        for outcome in source.samples(item):
            if isinstance(outcome, Sample) and len(outcome.video) > LARGEST_MEMBER:
                yield Refused(f"oversize: {len(outcome.video)} bytes, more than {LARGEST_MEMBER}")
            else:
                yield outcome
    except Refused as refusal:
        yield refusal
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        yield Refused(f"failed: {type(error).__name__}: {one_line(error)}")


@dataclass(frozen=True, kw_only=True)
class AskJob:
    """Puts a question to items."""

    name: str
    question: Callable[[Item], Any]

    def run(self, number: int, items: Sequence[Item]) -> Result:
        answers = [self._answer(item) for item in items]
        return {"answers": answers}

    def attempt(self, item: Item) -> None:
        self._answer(item)

    def holds(self, result: Result) -> bool:
        return "answers" in result

    def _answer(self, item: Item) -> dict[str, Any]:
        try:
            if "refusal" in item:
                raise Refused(item["refusal"])
            return {"said": self.question(item)}
        except Refused as refusal:
            return {"refused": str(refusal)}
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            return {"refused": f"failed: {type(error).__name__}: {one_line(error)}"}


class _Asker:
    """An Ask whose answers are kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, name: str, question: Callable[[Item], Any], items: Sequence[Item]
    ) -> list[Any]:
        parts = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
        results = work(AskJob(name=name, question=question), parts, self.folder / name)
        answers = [answer for result in results for answer in result["answers"]]
        return [
            answer["said"] if "said" in answer else Refused(answer["refused"]) for answer in answers
        ]


def _partition(items: Sequence[Item], clips_per_shard: int) -> list[list[Item]]:
    """What each task gets: a range of items, or all that lie in one shard."""
    if any("shard" in item for item in items):
        places: dict[str, list[Item]] = {}
        for item in items:
            places.setdefault(item.get("shard", ""), []).append(item)
        return list(places.values())
    starts = range(0, len(items), clips_per_shard)
    return [list(items[start : start + clips_per_shard]) for start in starts]


def _finish(folder: Path, results: Sequence[Result], facts: dict[str, Any]) -> None:
    """Write the lists beside the shards; dataset.json, the mark of a whole data set, last."""
    from hstvg.runtime.index import write_index

    rows = [row for result in results for row in result["rows"]]
    rejected = [entry for result in results for entry in result["rejected"]]
    shards = {name: facts for result in results for name, facts in result["shards"].items()}
    refused = counts(rejected)
    if not rows:
        example = "{source}: {reason}".format(**rejected[0])
        raise NothingAccepted(
            f"no clip was accepted, so no data set was written: {_count_line(refused)}; "
            f"for example {example}"
        )
    _sweep_out(folder, shards)
    with replace_file(folder / "rejected.jsonl") as file:
        for entry in rejected:
            # ASCII with escapes: the name of a file need not be valid text.
            file.write(json.dumps(entry).encode() + b"\n")
    index = write_index(folder, rows)
    record = {
        **facts,
        "num_clips": len(rows),
        "num_bytes": sum(shard["num_bytes"] for shard in shards.values()),
        "splits": dict(sorted(Counter(row["split"] for row in rows).items())),
        "refused": refused,
        "index_hash": index.hash,
        "shards": shards,
    }
    with replace_file(folder / "dataset.json") as file:
        file.write(json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")


def _sweep_out(folder: Path, shards: Mapping[str, Any]) -> None:
    """Remove what an interrupted run wrote and this one does not count, and an empty folder."""
    for path in (folder / "shards").iterdir():
        if f"shards/{path.name}" not in shards:
            path.unlink()
    with suppress(OSError):
        (folder / "shards").rmdir()


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


def finished(out: Path, identity: str) -> Summary | None:
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


def _count_line(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in numbers.items())
