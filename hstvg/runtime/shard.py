"""Shards: plain WebDataset tars of KEY.mp4 + KEY.json, with the exact place of every member.

The bytes of a shard depend on its samples alone: no clock, user or path enters the tar.
"""

import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

TEMPORARY_SUFFIX = ".tmp"
LARGEST_MEMBER = 1 << 30
LARGEST_JSON = 1 << 20
"""Bytes. A larger member is no clip and no description of one, whatever it says of itself."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One clip as it lies in a shard."""

    key: str
    """Unique in the data set and without dots: WebDataset cuts a member's name at its first dot."""
    video: bytes
    """MP4, or what `suffix` says."""
    facts: dict[str, Any]
    """The JSON member: caption, fps, num_frames, width, height, split; may hold source, scene."""
    suffix: str = "mp4"


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is whole and on the disk.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_shard(path: Path, samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """Write a tar and return one index row per sample, in the order of the tar.

    Samples are taken one by one, so only one clip is in memory. Without samples no file is written.

    Raises:
        ValueError: a key is empty, repeated, or has a dot or a slash.
        OSError: the folder does not exist or cannot be written.
    """
    remaining = iter(samples)
    first = next(remaining, None)
    if first is None:
        return []
    rows: dict[str, dict[str, Any]] = {}
    with (
        replace_file(path) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for sample in itertools.chain([first], remaining):
            if sample.key in rows:
                raise ValueError(f"key {sample.key!r} occurs twice in {path.name}")
            rows[sample.key] = _add_sample(tar, file, sample)
    shard = f"{path.parent.name}/{path.name}"
    return [{"shard": shard, **row} for row in rows.values()]


def write_shards(path: Path, samples: Iterable[Sample], most: int) -> list[list[dict[str, Any]]]:
    """Write tars of at most `most` samples each and return the rows of each.

    The first is `path`; where more samples come than it takes, NAME-1.tar, NAME-2.tar follow.

    Raises:
        ValueError, OSError: as `write_shard`.
    """
    remaining = iter(samples)
    shards: list[list[dict[str, Any]]] = []
    while rows := write_shard(
        path if not shards else path.with_stem(f"{path.stem}-{len(shards)}"),
        itertools.islice(remaining, most),
    ):
        shards.append(rows)
    return shards


def checksum(data: bytes) -> str:
    """The digest of a member as the index holds it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _add_sample(tar: tarfile.TarFile, file: IO[bytes], sample: Sample) -> dict[str, Any]:
    if not sample.key or "." in sample.key or "/" in sample.key:
        raise ValueError(f"key {sample.key!r} must have no dot and no slash, and not be empty")
    facts = json.dumps(sample.facts, sort_keys=True, ensure_ascii=False).encode()
    columns = ("num_frames", "width", "height", "fps", "caption", "split")
    return {
        "key": sample.key,
        "offset": _add_member(tar, file, f"{sample.key}.{sample.suffix}", sample.video),
        "size": len(sample.video),
        "json_offset": _add_member(tar, file, f"{sample.key}.json", facts),
        "json_size": len(facts),
        **{name: sample.facts[name] for name in columns},
        "checksum": checksum(sample.video),
        "json_checksum": checksum(facts),
    }


def _add_member(tar: tarfile.TarFile, file: IO[bytes], name: str, data: bytes) -> int:
    """Append a member and return the offset of its first data byte in the file."""
    info = tarfile.TarInfo(name)  # its defaults are uid 0, gid 0, mtime 0, no names
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))
    # The header's length is tarfile's affair; the data, padded to whole blocks, ends the member.
    num_blocks = -(-len(data) // tarfile.BLOCKSIZE)
    return file.tell() - num_blocks * tarfile.BLOCKSIZE


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; the new name lives in the folder, not in the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
