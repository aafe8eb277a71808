"""The index of a data set: one Parquet row per sample, and the hash that names its content."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from hstvg.runtime.errors import ConfigError
from hstvg.runtime.shard import replace_file
from hstvg.runtime.storage import absolute, exists, join, open_file, patiently

FILE_NAME = "index.parquet"

SCHEMA = pa.schema(
    [
        # Relative to the data set, e.g. shards/000000.tar; absolute where it lies elsewhere.
        ("shard", pa.string()),
        ("key", pa.string()),
        ("offset", pa.int64()),  # bytes; first byte in its tar of the MP4, or of its latents
        ("size", pa.int64()),  # bytes
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),  # 0 where the sample has no JSON member
        ("num_frames", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("caption", pa.string()),
        ("split", pa.string()),  # train, val or unseen
        ("checksum", pa.string()),  # of the same bytes, "sha256:" and hexadecimal digits
        ("json_checksum", pa.string()),  # of the JSON member; empty where there is none
    ]
)


PLAN_COLUMNS = ["shard", "split", "num_frames", "width", "height", "fps"]
"""What orders the training; the rest is read when samples are."""
ROWS_PER_GROUP = 1 << 16
"""Of the Parquet file: a few rows can be had without reading all."""
HASH, FACTS = b"hstvg.hash", b"hstvg.facts"
"""In the metadata of the Parquet file: hash_table of all columns, and of PLAN_COLUMNS, by which it
is known whether the former still holds; verify looks at all."""


@dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """Where every sample lies and what it is, in the order of the shards."""

    root: str
    """Location of the data set: an absolute path, or a URI."""
    facts: pa.Table
    """PLAN_COLUMNS of all rows."""
    hash: str
    """SHA-256 of the ordered rows; does not depend on where the data set lies."""

    def __len__(self) -> int:
        return self.facts.num_rows

    def rows_of(self, split: str) -> Int[np.ndarray, "N"]:
        """Row numbers of a split, ascending; empty if the data set has none."""
        here = pc.equal(self.facts.column("split"), split)  # pyright: ignore[reportAttributeAccessIssue]
        return np.flatnonzero(here.to_numpy())

    def fact(self, name: str) -> np.ndarray:
        """One of the plan's columns of numbers."""
        return self.facts.column(name).to_numpy()

    @cached_property
    def shard_numbers(self) -> Int[np.ndarray, "N"]:
        """The shard of every row, counted from 0 in no particular order."""
        chunks = self.facts.column("shard").unify_dictionaries().chunks
        return np.concatenate([chunk.indices.to_numpy() for chunk in chunks])

    @cached_property
    def table(self) -> pa.Table:
        """All columns of all rows."""
        file = _open(self.root)
        return _checked(patiently(lambda: file.read(SCHEMA.names)), self.root).combine_chunks()

    def take(self, rows: Int[np.ndarray, "N"]) -> pa.Table:
        """All columns of some rows, reading no more of the file than they need."""
        if "table" in self.__dict__:
            return self.table.take(rows)
        file = _open(self.root)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        groups = np.searchsorted(starts, rows, side="right") - 1
        needed = np.unique(groups)
        places = np.searchsorted(needed, groups)
        kept_before = np.cumsum([0, *(sizes[g] for g in needed)])[:-1]
        table = patiently(lambda: file.read_row_groups(needed.tolist(), columns=SCHEMA.names))
        return _checked(table, self.root).take(rows - starts[groups] + kept_before[places])


def read_index(root: str | Path) -> DatasetIndex:
    """The index of the data set at `root`, a folder or the URI of one.

    Raises:
        ConfigError: the folder or its index is missing, unreadable, empty or lacks a column.
    """
    location = absolute(str(root))
    file = _open(location)
    missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
    if missing:
        raise ConfigError(f"{_name(location)} has no column {', '.join(missing)}; {_again(root)}")
    try:
        facts = _checked(patiently(lambda: file.read(PLAN_COLUMNS)), location)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(location, error) from error
    metadata = file.schema_arrow.metadata or {}
    if metadata.get(FACTS) == hash_table(facts).encode():
        known = metadata[HASH].decode()
    else:  # written by another program, or edited
        known = hash_table(_checked(file.read(SCHEMA.names), location))
    return DatasetIndex(root=location, facts=facts, hash=known)


def write_index(root: Path, rows: Sequence[dict[str, Any]]) -> DatasetIndex:
    """Write `rows` as the index of the data set at `root`, whole or not at all.

    Raises:
        ValueError: a key occurs twice.
        OSError: the folder does not exist or cannot be written.
    """
    return write_table(root, pa.Table.from_pylist(list(rows), schema=SCHEMA))


def write_table(root: Path, table: pa.Table) -> DatasetIndex:
    """`write_index` of a table of SCHEMA."""
    if len(table.column("key").unique()) < len(table):
        raise ValueError("a key occurs twice in the data set")
    facts = hash_table(table.select(PLAN_COLUMNS))
    metadata = {HASH: hash_table(table).encode(), FACTS: facts.encode()}
    with replace_file(root / FILE_NAME) as file:
        pq.write_table(table.replace_schema_metadata(metadata), file, row_group_size=ROWS_PER_GROUP)
    return read_index(root)


def _open(location: str) -> pq.ParquetFile:
    name = _name(location)
    try:
        if not exists(name):
            what = "has no index.parquet" if exists(location) else "does not exist"
            raise ConfigError(f"data set {location} {what}; make it with {_next_command(location)}")
        return pq.ParquetFile(open_file(name), read_dictionary=["shard", "split"])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(location, error) from error


def _checked(table: pa.Table, location: str) -> pa.Table:
    """The table in the types of SCHEMA; texts that repeat stay dictionaries."""
    if not table.num_rows or any(column.null_count for column in table.columns):
        raise ConfigError(f"{_name(location)} has no rows or empty values; {_again(location)}")
    fields = [
        pa.field(name, pa.dictionary(pa.int32(), pa.string()))
        if name in ("shard", "split")
        else SCHEMA.field(name)
        for name in table.column_names
    ]
    return table.cast(pa.schema(fields))


def _unreadable(location: str, error: Exception) -> ConfigError:
    cause = str(error).splitlines()[0]
    # Storage that fails is no reason to throw a data set away.
    advice = "try again" if isinstance(error, OSError) else _again(location)
    return ConfigError(f"{_name(location)} is unreadable ({cause}); {advice}")


def _name(location: str) -> str:
    return join(location, FILE_NAME)


def hash_table(table: pa.Table) -> str:
    """SHA-256 of names and values, column by column.

    Values, not Arrow's own bytes: those differ between library versions and chunkings.
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(f"{name}:{table.num_rows};".encode())
        column = table.column(name)
        if SCHEMA.field(name).type == pa.string():
            _hash_text(digest, column)
        else:
            kind = "<f8" if pa.types.is_floating(column.type) else "<i8"
            digest.update(column.to_numpy().astype(kind).tobytes())
    return digest.hexdigest()


def _hash_text(digest: Any, column: pa.ChunkedArray) -> None:
    """Lengths, then text: so that moving a letter from one row to the next is seen."""
    texts = column.cast(pa.string()).cast(pa.large_string()).combine_chunks()
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, "<i8", count=len(texts) + 1, offset=8 * texts.offset)
    digest.update(np.diff(ends).tobytes())
    if data is not None:
        digest.update(memoryview(data)[ends[0] : ends[-1]])


def _next_command(root: str | Path) -> str:
    return f"python -m pipelines.prepare out={root}"


def _again(root: str | Path) -> str:
    return f"remove the folder and make it again with {_next_command(root)}"
