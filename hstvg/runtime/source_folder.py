"""A folder of somebody's own videos as a source: finding them, their captions, and their keys."""

import csv
import errno
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hstvg.runtime.errors import ConfigError
from hstvg.runtime.shard import Sample
from hstvg.runtime.source import Item, Refused

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
))
# fmt: on
CAPTION_TABLES = ("captions.csv", "captions.jsonl", "captions.parquet")
MAX_CAPTION = 1000
"""Characters."""


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Videos of a folder and its sub-folders; hidden files and symlinked folders are skipped.

    A caption is taken from NAME.txt, else NAME.json {"caption"}, else from a table in the folder:
    captions.csv, .jsonl or .parquet with the columns file (path in the folder) and caption.
    """

    path: str
    max_side: int = 256
    """Pixels; larger videos are scaled down."""
    min_frames: int = 2
    val_fraction: float = 0.05

    def __post_init__(self) -> None:
        # Absolute at once: a Ray worker has another working directory.
        object.__setattr__(self, "path", str(Path(self.path).expanduser().resolve()))

    @property
    def root(self) -> Path:
        return Path(self.path)

    def items(self) -> list[Item]:
        if not self.root.is_dir():
            raise ConfigError(f"source.path={self.path}: no such folder")
        captions = _read_tables(self.root)
        found = [_folder_item(self.root, path, captions) for path in _walk_videos(self.root)]
        if not found:
            raise ConfigError(
                f"source.path={self.path}: no video in this folder or its sub-folders "
                "(symlinked folders are not followed)"
            )
        held_out = self._hold_out(found)
        found = [{**item, "held_out": item["name"] in held_out} for item in found]
        absent = sorted(captions.keys() - {item["name"] for item in found})
        refusal = "missing: listed in the caption table, but no such video in the folder"
        return found + [{"name": name, "refusal": refusal} for name in absent]

    def sample(self, item: Item) -> Sample:
        from hstvg.data.transcode import Form, transcode
        from hstvg.data.video import UnreadableVideo

        if "refusal" in item:
            raise Refused(item["refusal"])
        caption = _clean(self._caption(item))
        if not caption:
            raise Refused("no caption")
        path = _inside(self.root, item["name"])
        try:
            video, info = transcode(path, Form(max_side=self.max_side))
        except UnreadableVideo as error:
            if getattr(error.__cause__, "errno", None) == errno.ENOSPC:
                raise OSError(errno.ENOSPC, "no space for temporary files") from error
            raise Refused(f"unreadable: {_one_line(error)}") from error
        if info.num_frames < self.min_frames:
            raise Refused(f"too short: {info.num_frames} of at least {self.min_frames} frames")
        facts = {
            "caption": caption,
            "fps": float(info.fps),
            "num_frames": info.num_frames,
            "width": info.width,
            "height": info.height,
            "split": "val" if item["held_out"] else "train",
            "source": _printable(item["name"]),
        }
        return Sample(key=_key(item["name"]), video=video, facts=facts)

    def estimate_bytes(self, items: Sequence[Item]) -> int:
        return sum(item["stamps"][0][0] for item in items if "stamps" in item)

    def _hold_out(self, items: Sequence[Item]) -> set[str]:
        """Names held out for validation: by a hash, so a clip stays where it is as others come.

        Where the hash finds so few that all might be refused, the usable clip nearest to it is
        taken, so that even a folder of two clips has one to validate on.
        """
        places = {item["name"]: _unit_hash(item["name"]) for item in items}
        held_out = {name for name, place in places.items() if place < self.val_fraction}
        if self.val_fraction > 0 and len(held_out) < 3 and len(items) > 1:
            nearest = sorted(items, key=lambda item: places[item["name"]])
            held_out.update(next(([item["name"]] for item in nearest if self._usable(item)), []))
        return held_out

    def _usable(self, item: Item) -> bool:
        try:
            self.sample({**item, "held_out": True})
        except Refused:
            return False
        return True

    def _caption(self, item: Item) -> str:
        if item["caption_file"] is None:
            return item["caption"]
        path = _inside(self.root, item["caption_file"])
        try:
            text = path.read_text("utf-8-sig")
            return text if path.suffix == ".txt" else json.loads(text)["caption"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            cause = f"{type(error).__name__}: {_one_line(error)}"
            raise Refused(f"unreadable caption: {path.name}: {cause}") from error


def _walk_videos(root: Path) -> list[Path]:
    """Paths of all videos below `root`, sorted by name."""
    found = []
    for folder, subfolders, names in os.walk(root, onerror=_cannot_search):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in names
            if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _cannot_search(error: OSError) -> None:
    raise ConfigError(f"cannot search {error.filename}: {error.strerror}") from error


def _folder_item(root: Path, path: Path, captions: Mapping[str, str]) -> Item:
    name = path.relative_to(root).as_posix()
    beside = [path.with_suffix(suffix) for suffix in (".txt", ".json")]
    caption_file = next((file for file in beside if file.is_file()), None)
    files = [path] if caption_file is None else [path, caption_file]
    return {
        "name": name,
        "caption": captions.get(name, ""),
        "caption_file": caption_file and caption_file.relative_to(root).as_posix(),
        # lstat: nothing is learnt about what a symlink points at.
        "stamps": [(file.lstat().st_size, file.lstat().st_mtime_ns) for file in files],
    }


def _inside(root: Path, name: str) -> Path:
    """The file `name` of the folder, unless a symlink leads out of it."""
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # a loop of symlinks
        raise Refused(f"unreadable: {_one_line(error)}") from error
    if not path.is_relative_to(root):
        raise Refused(f"symlink leaves the folder: {name}")
    return path


def _read_tables(root: Path) -> dict[str, str]:
    """File (path in the folder) -> caption, of every caption table that is there."""
    captions: dict[str, str] = {}
    for table in CAPTION_TABLES:
        path = root / table
        if not path.is_file():
            continue
        try:
            for row in _table_rows(_inside(root, table)):
                file = PurePosixPath(str(row["file"]).strip().replace("\\", "/")).as_posix()
                captions.setdefault(file, str(row["caption"] or ""))
        except KeyError as error:
            raise ConfigError(f"{path} has no column {error}; it needs file and caption") from error
        except (Refused, ValueError, TypeError, OSError, csv.Error) as error:
            raise ConfigError(f"{path} is unreadable: {_one_line(error)}") from error
    return captions


def _table_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.ParquetFile(path).read().to_pylist()
    lines = path.read_text("utf-8-sig").splitlines(keepends=True)
    if path.suffix == ".csv":
        return list(csv.DictReader(lines))
    return [json.loads(line) for line in lines if line.strip()]


def _key(name: str) -> str:
    """A readable start, and a hash that makes it unique and stable; no dots."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(name).with_suffix("").as_posix())
    return f"{stem[:40]}-{digest[:12]}".lstrip("-")


def _unit_hash(name: str) -> float:
    """A number in [0, 1) that belongs to the name for ever."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return int(digest[:13], 16) / 16**13


def _clean(caption: object) -> str:
    """One line of text; anything that is not text becomes empty."""
    if not isinstance(caption, str):
        return ""
    return " ".join(_printable(caption).split())[:MAX_CAPTION].strip()


def _printable(text: str) -> str:
    """Control characters and lone surrogates (no UTF-8 has them) become spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
