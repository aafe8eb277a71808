"""The index of a data set: one Parquet row per sample, and the hash that names its content."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hstvg.runtime.errors import ConfigError
from hstvg.runtime.shard import replace_file

FILE_NAME = "index.parquet"

SCHEMA = pa.schema(
    [
        # Relative to the data set, e.g. shards/000000.tar; absolute where it lies elsewhere.
        ("shard", pa.string()),
        ("key", pa.string()),
        ("offset", pa.int64()),  # bytes; first byte of the MP4 in its tar
        ("size", pa.int64()),  # bytes
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),  # 0 where the sample has no JSON member
        ("num_frames", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("caption", pa.string()),
        ("split", pa.string()),  # train, val or unseen
        ("checksum", pa.string()),  # of the MP4, "sha256:" and hexadecimal digits
        ("json_checksum", pa.string()),  # of the JSON member; empty where there is none
    ]
)


@dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """Where every sample lies and what it is, in the order of the shards."""

    root: Path
    table: pa.Table
    hash: str
    """SHA-256 of the ordered rows; does not depend on where the data set lies."""

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> np.ndarray:
        """One column as an array; text columns hold str objects.

        Raises:
            KeyError: there is no such column.
        """
        return self.table.column(name).to_numpy()

    def rows_of(self, split: str) -> np.ndarray:
        """Row numbers of a split, ascending; empty if the data set has none."""
        return np.flatnonzero(self.column("split") == split)


def read_index(root: str | Path) -> DatasetIndex:
    """The index of the data set at `root`.

    Raises:
        ConfigError: the folder or its index is missing, unreadable, empty or lacks a column.
    """
    path = Path(root) / FILE_NAME
    if not path.is_file():
        what = "has no index.parquet" if Path(root).is_dir() else "does not exist"
        raise ConfigError(f"data set {root} {what}; make it with {_next_command(root)}")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0]
        raise ConfigError(f"{path} is unreadable ({cause}); {_again(root)}") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}; {_again(root)}")
    table = table.select(SCHEMA.names)
    if not table.num_rows or any(column.null_count for column in table.columns):
        raise ConfigError(f"{path} has no rows or empty values; {_again(root)}")
    table = table.cast(SCHEMA)
    return DatasetIndex(root=Path(root).resolve(), table=table, hash=hash_table(table))


def write_index(root: Path, rows: Sequence[dict[str, Any]]) -> DatasetIndex:
    """Write `rows` as the index of the data set at `root`, whole or not at all.

    Raises:
        ValueError: a key occurs twice.
        OSError: the folder does not exist or cannot be written.
    """
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    if len({row["key"] for row in rows}) < len(rows):
        raise ValueError("a key occurs twice in the data set")
    with replace_file(root / FILE_NAME) as file:
        pq.write_table(table, file)
    return DatasetIndex(root=root.resolve(), table=table, hash=hash_table(table))


def hash_table(table: pa.Table) -> str:
    """SHA-256 of names and values, column by column.

    Values, not Arrow's own bytes: those differ between library versions and chunkings.
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(f"{name}:{table.num_rows};".encode())
        column = table.column(name)
        if pa.types.is_string(column.type):
            _hash_text(digest, column)
        else:
            kind = "<f8" if pa.types.is_floating(column.type) else "<i8"
            digest.update(column.to_numpy().astype(kind).tobytes())
    return digest.hexdigest()


def _hash_text(digest: Any, column: pa.ChunkedArray) -> None:
    """Lengths, then text: so that moving a letter from one row to the next is seen."""
    texts = column.cast(pa.large_string()).combine_chunks()
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, "<i8", count=len(texts) + 1, offset=8 * texts.offset)
    digest.update(np.diff(ends).tobytes())
    if data is not None:
        digest.update(memoryview(data)[ends[0] : ends[-1]])


def _next_command(root: str | Path) -> str:
    return f"python -m pipelines.prepare out={root}"


def _again(root: str | Path) -> str:
    return f"remove the folder and make it again with {_next_command(root)}"
