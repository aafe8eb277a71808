"""A folder of somebody's own videos as a source: finding them, their captions, and their keys."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hstvg.runtime.caption import clean, printable, read_caption, read_tables
from hstvg.runtime.clip_rules import ClipRules, Cut, clip_facts, readable, spans_of
from hstvg.runtime.duplicates import find_duplicates
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.scan import VIDEO_SUFFIXES
from hstvg.runtime.shard import Sample
from hstvg.runtime.source import Ask, Item, Refused, count_shards, inside, size_text
from hstvg.runtime.split import hold_out


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Videos of a folder and its sub-folders. Hidden files and folders are not looked at.

    A caption is taken from NAME.txt, else NAME.json {"caption"}, else from a table in the folder:
    captions.csv, .jsonl or .parquet with the columns file (path in the folder) and caption. All
    parts of a video have its caption, and lie in the same split.
    """

    path: str
    policy: str = "fit"
    """As `Form`, with the sizes and rate below."""
    max_side: int = 256
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    gop: int = 16
    min_frames: int = 2
    min_s: float = 0.0
    max_s: float | None = None
    """Seconds; longer footage is cut into equal parts of at most this."""
    cuts: bool = False
    """Whether a video is cut into its scenes first."""
    min_motion: float | None = None
    """Frame widths per second."""
    dedup: int | None = None
    """Bits in which the fingerprints of duplicates differ at most."""
    val_fraction: float = 0.05

    def __post_init__(self) -> None:
        # Absolute at once: a Ray worker has another working directory.
        object.__setattr__(self, "path", str(Path(self.path).expanduser().resolve()))
        if self.max_s is not None and not self.max_s > max(0.0, self.min_s):
            raise ValueError(f"max_s={self.max_s}: must be above 0 and above min_s={self.min_s}")
        self.rules  # noqa: B018  a size out of range dies here

    @property
    def root(self) -> Path:
        return Path(self.path)

    @property
    def rules(self) -> ClipRules:
        from hstvg.data.transcode import Form

        form = Form(
            policy=self.policy,
            max_side=self.max_side,
            height=self.height,
            width=self.width,
            fps=self.fps,
            gop=self.gop,
        )
        return ClipRules(
            form=form, min_frames=self.min_frames, min_s=self.min_s, min_motion=self.min_motion
        )

    def items(self) -> list[Item]:
        if not self.root.is_dir():
            raise ConfigError(f"source.path={self.path}: no such folder")
        if self.cuts and importlib.util.find_spec("scenedetect") is None:
            raise ConfigError("source.cuts=true needs scenedetect; pip install 'hstvg[cuts]'")
        captions = read_tables(self.root)
        videos, links = _walk(self.root)
        found = [_item(self.root, path, captions) for path in videos]
        if not found:
            raise ConfigError(
                f"source.path={self.path}: no video in this folder or its sub-folders "
                "(symlinked folders are not followed)"
            )
        absent = sorted(captions.keys() - {item["name"] for item in found})
        return [
            *found,
            *(_refused(_name(self.root, link), "symlinked folder: not followed") for link in links),
            *(_refused(name, "missing: in the caption table, but not here") for name in absent),
        ]

    def outlook(self, items: Sequence[Item], clips_per_shard: int) -> str:
        videos = [item for item in items if "refusal" not in item]
        size = size_text(sum(item["stamps"][0][0] for item in videos))
        what = "parts" if self.cuts or self.max_s else "clips"
        shards = count_shards(len(items), clips_per_shard)
        return f"the {what} of {len(videos)} videos ({size} as they are) in at least {shards}"

    def settle(self, items: Sequence[Item], ask: Ask) -> list[Item]:
        if self.dedup is not None:
            items = self._without_duplicates(items, ask, self.dedup)
        videos = {item["name"]: item for item in items if "refusal" not in item}

        def usable(name: str) -> bool:
            (answer,) = ask("usable", self.is_usable, [videos[name]])
            return answer is True

        held_out = hold_out(videos, self.val_fraction, usable)
        return [{**item, "held_out": item["name"] in held_out} for item in items]

    def samples(self, item: Item) -> Iterator[Sample | Refused]:
        caption = clean(self._caption(item))
        if not caption:
            raise Refused("no caption")
        path = inside(self.root, item["name"])
        spans = spans_of(path, cuts=self.cuts, max_s=self.max_s)
        cuts = [Cut(*span, caption) for span in spans]
        facts = clip_facts(held_out=item["held_out"], source=item["name"])
        yield from self.rules.clips(path, cuts, key=_key(item["name"]), facts=facts)

    def is_usable(self, item: Item) -> bool:
        """Whether any clip comes of it."""
        outcomes = self.samples({**item, "held_out": True})
        return any(isinstance(outcome, Sample) for outcome in outcomes)

    def fingerprint(self, item: Item) -> list[int]:
        """What tells it from others, in words of 64 bits."""
        from hstvg.data.fingerprint import fingerprint

        with readable():
            return fingerprint(inside(self.root, item["name"])).tolist()

    def _without_duplicates(self, items: Sequence[Item], ask: Ask, most_bits: int) -> list[Item]:
        videos = [item for item in items if "refusal" not in item]
        answers = ask("fingerprints", self.fingerprint, videos)
        # A video without a fingerprint is left to be refused with its own reason.
        known = {
            item["name"]: answer
            for item, answer in zip(videos, answers, strict=True)
            if not isinstance(answer, Refused)
        }
        first = find_duplicates(known, most_bits)
        return [
            {**item, "refusal": f"duplicate: of {printable(first[item['name']])}"}
            if item["name"] in first
            else item
            for item in items
        ]

    def _caption(self, item: Item) -> str:
        if item["caption_file"] is None:
            return item["caption"]
        return read_caption(inside(self.root, item["caption_file"]))


def _walk(root: Path) -> tuple[list[Path], list[Path]]:
    """All videos below `root` and all symlinks to folders, sorted by name."""
    videos: list[Path] = []
    links: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=_cannot_search):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        links += [Path(folder, name) for name in subfolders if Path(folder, name).is_symlink()]
        videos += [
            Path(folder, name)
            for name in names
            if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")
        ]
    for found in (videos, links):
        found.sort(key=lambda path: _name(root, path))
    return videos, links


def _cannot_search(error: OSError) -> None:
    raise ConfigError(f"cannot search {error.filename}: {error.strerror}") from error


def _item(root: Path, path: Path, captions: Mapping[str, str]) -> Item:
    name = _name(root, path)
    beside = [path.with_suffix(suffix) for suffix in (".txt", ".json")]
    caption_file = next((file for file in beside if file.is_file()), None)
    files = [path] if caption_file is None else [path, caption_file]
    return {
        "name": name,
        "caption": captions.get(name, ""),
        "caption_file": caption_file and _name(root, caption_file),
        # lstat: nothing is learnt about what a symlink points at.
        "stamps": [(file.lstat().st_size, file.lstat().st_mtime_ns) for file in files],
    }


def _refused(name: str, refusal: str) -> Item:
    return {"name": name, "refusal": refusal}


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _key(name: str) -> str:
    """A readable start, and a hash that makes it unique and stable; no dots."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(name).with_suffix("").as_posix())
    return f"{stem[:40]}-{digest[:12]}".lstrip("-")
