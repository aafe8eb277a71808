"""Whether a data set is what it was when it was made: every byte of it, checked on Ray.

Nothing is written. A shard is held against dataset.json; where it differs, each of its samples is
held against the index, so that a damaged gigabyte names the few clips that are lost.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from hstvg.runtime.caption import printable
from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.scan import LATENT_SUFFIXES, VIDEO_SUFFIXES, Scan, scan_shard, split_name
from hstvg.runtime.shard import checksum
from hstvg.runtime.source import one_line, size_text
from hstvg.runtime.tar import Member, member_at

MOST_LINES = 20
CLIP_SUFFIXES = VIDEO_SUFFIXES | LATENT_SUFFIXES
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found."""

    path: Path
    num_clips: int
    num_shards: int
    num_bytes: int
    faults: Sequence[str]
    """One line each."""

    def __str__(self) -> str:
        size = f"{self.num_clips} clips in {self.num_shards} shards, {size_text(self.num_bytes)}"
        if not self.faults:
            return f"{self.path} is whole: {size}, every byte checked"
        more = len(self.faults) - MOST_LINES
        rest = [f"... and {more} more"] if more > 0 else []
        return "\n".join([*self.faults[:MOST_LINES], *rest, f"{self.path} should be {size}"])

    def check(self) -> None:
        """Raises CommandError, in one line, unless all is whole."""
        if self.faults:
            number = f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)}"
            raise CommandError(
                f"{self.path} is damaged: {number}, first {self.faults[0]}; restore it from a "
                "copy, or remove it and make it again"
            )


def verify(path: Path, num_cpus: int | None = None) -> Verdict:
    """Check the data set at `path`.

    Raises:
        ConfigError: there is no data set.
        CommandError: its lists cannot be read, so nothing can be said of its shards; or no Ray.
    """
    import ray

    from hstvg.runtime.cluster import connect
    from hstvg.runtime.index import hash_table, read_index

    path, record = path.expanduser().resolve(), _record(path)
    try:
        table = read_index(path).table
    except ConfigError as error:
        raise CommandError(str(error)) from error
    rows: dict[str, list[Row]] = {name: [] for name in record["shards"]}
    for row in table.to_pylist():
        rows.setdefault(row["shard"], []).append(row)
    intact = hash_table(table) == record["index_hash"]
    keys = table.column("key").to_pylist()
    faults = [] if intact else ["index.parquet: not the one that dataset.json was written with"]
    if len(set(keys)) < len(keys):
        faults.append(f"index.parquet: {len(keys) - len(set(keys))} keys occur again")
    refused = _refused(path)
    connect(num_cpus)
    held = ray.put(refused)
    checks = (
        (path, name, record["shards"].get(name), part, not intact, held)
        for name, part in rows.items()
    )
    for found in _spread(checks):
        faults += found
    return Verdict(
        path=path,
        num_clips=record["num_clips"],
        num_shards=len(record["shards"]),
        num_bytes=record["num_bytes"],
        faults=faults,
    )


def outlook(path: Path) -> str:
    """What `verify` would check. Raises ConfigError or CommandError as it does."""
    record = _record(path)
    size = f"{len(record['shards'])} shards, {size_text(record['num_bytes'])}"
    return f"{path} would be checked: {record['num_clips']} clips in {size}"


def check_shard(
    root: Path,
    name: str,
    facts: Mapping[str, Any] | None,
    rows: Sequence[Row],
    thorough: bool,
    refused: frozenset[str],
) -> list[str]:
    """What is wrong with one shard, in lines.

    Args:
        root: of the data set.
        name: of the shard, as the index has it.
        facts: of the shard in dataset.json, if it is there.
        rows: of the index that name it.
        thorough: whether to check each sample even if the shard as a whole is right.
        refused: sources in rejected.jsonl, of which a shard that lies elsewhere may have some.
    """
    path = root / name
    if facts is None:
        return [f"{name}: in the index, but not in dataset.json"]
    if not path.is_file():
        return [f"{name}: missing, with {len(rows)} clips"]
    try:
        faults = _whole_faults(path, facts, rows)
        scan, size = scan_shard(path), path.stat().st_size
        members = {member.offset: member for member in scan.members}
        with path.open("rb") as file:
            for row in rows:
                cause = _misplaced(file, size, members, row)
                if not cause and (faults or thorough):
                    cause = _altered(file, row)
                faults += [f"{row['key']}: {cause}"] if cause else []
    except OSError as error:
        return [f"{name}: unreadable: {one_line(error)}"]
    faults += _strangers(path, scan, {row["key"] for row in rows}, refused)
    return [f"{name}: {fault}" for fault in faults]


def _whole_faults(path: Path, facts: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    faults = []
    if len(rows) != facts["num_clips"]:
        faults.append(f"the index has {len(rows)} clips of {facts['num_clips']}")
    size = path.stat().st_size
    if size != facts["num_bytes"]:
        return [*faults, f"{size} bytes instead of {facts['num_bytes']}"]
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
            faults.append("its bytes are not those that were written (sha256)")
    return faults


def _misplaced(file: IO[bytes], size: int, members: Mapping[int, Member], row: Row) -> str:
    """Which member of a row is not where the index says, by the headers."""
    suffixes: list[tuple[str, str, frozenset[str]]] = [("offset", "size", CLIP_SUFFIXES)]
    if row["json_size"]:
        suffixes.append(("json_offset", "json_size", frozenset((".json",))))
    for offset, length, allowed in suffixes:
        if row[offset] < 0 or row[length] < 0 or row[offset] + row[length] > size:
            return f"beyond the end, at byte {row[offset]} of {size}"
        # What lies behind a broken header is not among the members, but may be whole.
        member = members.get(row[offset]) or member_at(file, row[offset])
        if member is None:
            return f"at byte {row[offset]} lies no member"
        key, _ = split_name(member.name, allowed) or ("", "")
        if key != row["key"] or member.size != row[length]:
            return f"at byte {row[offset]} lies {member.name} of {member.size} bytes"
    return ""


def _altered(file: IO[bytes], row: Row) -> str:
    """Which member of a row has not the bytes that were indexed."""
    for kind, offset, length, digest in (
        ("video", "offset", "size", "checksum"),
        ("JSON", "json_offset", "json_size", "json_checksum"),
    ):
        file.seek(row[offset])
        if row[length] and checksum(file.read(row[length])) != row[digest]:
            return f"its {kind} has other bytes than were indexed"
    return ""


def _strangers(path: Path, scan: Scan, keys: set[str], refused: frozenset[str]) -> Iterator[str]:
    """What is in a shard and not in the index, unless it was refused when that was made."""
    for group in scan.groups:
        if group.repeats and f"{path}/{group.key}" not in refused:
            yield f"{group.key}: occurs twice"
        elif group.key not in keys and f"{path}/{group.key}" not in refused:
            yield f"{group.key}: not in the index"
    for name, reason in scan.ignored:
        if f"{path}/{printable(name)}".rstrip("/") not in refused:
            yield f"{name}: {reason}" if name else reason


def _record(path: Path) -> dict[str, Any]:
    """What dataset.json says. Raises ConfigError, or CommandError if it is damaged."""
    file = path / "dataset.json"
    if not file.is_file():
        raise ConfigError(f"verify={path}: no data set there, for it has no dataset.json")
    try:
        record = json.loads(file.read_bytes())
        if not isinstance(record["shards"], dict):
            raise TypeError("shards is no object")
        return {name: record[name] for name in ("shards", "num_clips", "num_bytes", "index_hash")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{file} is damaged: {one_line(error)}") from error


def _refused(path: Path) -> frozenset[str]:
    """Sources in rejected.jsonl."""
    try:
        lines = (path / "rejected.jsonl").read_text().splitlines()
        return frozenset(json.loads(line)["source"] for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path / 'rejected.jsonl'} is damaged: {one_line(error)}") from error


def _spread(checks: Iterator[tuple[Any, ...]]) -> Iterator[list[str]]:
    """`check_shard` of each, in order, by Ray tasks of which some run ahead."""
    import ray

    task = ray.remote(check_shard)
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running = [task.remote(*check) for check in islice(checks, ahead)]
    while running:
        yield ray.get(running.pop(0))
        running += [task.remote(*check) for check in islice(checks, 1)]
