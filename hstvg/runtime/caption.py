"""Captions: finding them beside videos and in tables, and making them one clean line."""

import csv
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from hstvg.runtime.errors import ConfigError
from hstvg.runtime.shard import LARGEST_JSON
from hstvg.runtime.source import Refused, inside, one_line, size_text

TABLES = ("captions.csv", "captions.jsonl", "captions.parquet")
LARGEST_TABLE = 10**9
"""Bytes. A table is held in memory as a whole; a gigabyte has captions for ten million clips."""
MAX_CAPTION = 1000
"""Characters."""


def read_tables(root: Path) -> dict[str, str]:
    """File (path in the folder) -> caption, of every caption table that is there.

    Raises:
        ConfigError: a table is too large, unreadable or lacks a column.
    """
    captions: dict[str, str] = {}
    for table in TABLES:
        path = root / table
        if not path.is_file():
            continue
        if path.stat().st_size > LARGEST_TABLE:
            size = size_text(path.stat().st_size)
            raise ConfigError(
                f"{path} has {size}, more than {size_text(LARGEST_TABLE)}; split the folder"
            )
        try:
            for row in _table_rows(inside(root, table)):
                file = PurePosixPath(str(row["file"]).strip().replace("\\", "/")).as_posix()
                captions.setdefault(file, str(row["caption"] or ""))
        except KeyError as error:
            raise ConfigError(f"{path} has no column {error}; it needs file and caption") from error
        except (Refused, ValueError, TypeError, OSError, csv.Error) as error:
            raise ConfigError(f"{path} is unreadable: {one_line(error)}") from error
    return captions


def read_caption(path: Path) -> str:
    """The caption that a .txt or a .json file holds, as it stands there.

    Raises:
        Refused: it is too large, unreadable or has no caption.
    """
    return caption_in(read_small(path), path.name)


def read_small(path: Path) -> bytes:
    """A file that describes a clip. Raises Refused if it is too large or unreadable."""
    try:
        check_size(path.name, path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"unreadable caption: {path.name}: {one_line(error)}") from error


def caption_in(data: bytes, name: str) -> str:
    """The caption in the bytes of the file `name`. Raises Refused."""
    if name.lower().endswith(".json"):
        caption = json_object(data, name).get("caption")
        return caption if isinstance(caption, str) else ""
    try:
        return data.decode("utf-8-sig")
    except ValueError as error:
        raise Refused(f"unreadable caption: {name}: {one_line(error)}") from error


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """The object that a JSON file holds. Raises Refused."""
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Refused(f"unreadable caption: {name}: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise Refused(f"unreadable caption: {name} holds no JSON object")
    return found


def check_size(name: str, num_bytes: int) -> None:
    """Raises Refused where a JSON or text file cannot be a caption any more."""
    if num_bytes > LARGEST_JSON:
        raise Refused(f"oversize: {name} has {num_bytes} bytes, more than {LARGEST_JSON}")


def clean(caption: object) -> str:
    """One line of text; anything that is not text becomes empty."""
    if not isinstance(caption, str):
        return ""
    return " ".join(printable(caption).split())[:MAX_CAPTION].strip()


def printable(text: str) -> str:
    """Control characters and lone surrogates (no UTF-8 has them) become spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def _table_rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from pq.ParquetFile(path).read(["file", "caption"]).to_pylist()
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
        else:
            yield from (json.loads(line) for line in file if line.strip())
