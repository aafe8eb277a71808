"""WebDataset shards that are there already, as a source: indexed where they lie, never copied.

Members are found by their headers and read by their byte range. Nothing is extracted, nothing is
unpickled, and no shard is written to.
"""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hstvg.runtime.caption import caption_in, check_size, clean, json_object, printable
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.scan import Group, scan_shard
from hstvg.runtime.shard import LARGEST_MEMBER, checksum
from hstvg.runtime.source import Ask, Found, Item, Refused, inside, one_line, size_text
from hstvg.runtime.split import hold_out
from hstvg.runtime.tar import Member

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
SPLITS = ("train", "val", "unseen")


@dataclass(frozen=True, kw_only=True)
class WebDatasetSource:
    """Shards of KEY.mp4 (or .webm, .mkv, ...) with KEY.json {"caption"} or KEY.txt.

    A sample is in the split that its JSON names, else held out by the hash of its key.
    """

    path: str
    """A folder, searched with its sub-folders for .tar files, or a pattern such as DIR/*.tar."""
    min_frames: int = 2
    val_fraction: float = 0.05

    def __post_init__(self) -> None:
        # Absolute at once: a Ray worker has another working directory.
        object.__setattr__(self, "path", os.path.abspath(os.path.expanduser(self.path)))

    def items(self) -> list[Item]:
        names = sorted(self._files())
        if not any(name.endswith(".tar") for name in names):
            packed = f"; {names[0]} is compressed, unpack it to .tar" if names else ""
            raise ConfigError(f"source.path={self.path}: no .tar file there{packed}")
        items = [self._item(name) for name in names]
        first: dict[str, str] = {}
        for item, name in zip(items, names, strict=True):
            if first.setdefault(item["name"], name) != name:
                item["refusal"] = f"duplicate: {printable(name)} is a link to it"
        return items

    def outlook(self, items: Sequence[Item], clips_per_shard: int) -> str:
        shards = [item for item in items if "refusal" not in item]
        size = size_text(sum(item["stamp"][0] for item in shards))
        return f"an index of {len(shards)} shards, {size}, that stay where they are"

    def settle(self, items: Sequence[Item], ask: Ask) -> list[Item]:
        samples: list[Item] = []
        known: dict[str, str] = {}
        for item, answer in zip(items, ask("headers", self.read_headers, items), strict=True):
            if isinstance(answer, Refused):
                samples.append({"name": item["name"], "refusal": str(answer)})
                continue
            for sample in answer:
                key = sample.get("key")
                if key is not None and known.setdefault(key, item["name"]) != item["name"]:
                    refusal = f"duplicate key: {key} is also in {known[key]}"
                    sample = {"name": sample["name"], "refusal": refusal}
                samples.append(sample)
        return self._with_splits(samples, ask)

    def read_headers(self, item: Item) -> list[Item]:
        """The samples of a shard as items, and what is refused of it; no video is read."""
        scan = scan_shard(Path(item["name"]))
        ignored = [
            {"name": f"{item['name']}/{printable(name)}".rstrip("/"), "refusal": reason}
            for name, reason in scan.ignored
        ]
        with open(item["name"], "rb") as file:

            def read(member: Member) -> bytes:
                return _read(file, member.offset, member.size)

            return [_sample_item(item["name"], group, read) for group in scan.groups] + ignored

    def samples(self, item: Item) -> Iterator[Found]:
        from hstvg.data.video import UnreadableVideo, probe_video

        with open(item["shard"], "rb") as file:
            video = _read(file, item["offset"], item["size"])
        try:
            info = probe_video(video)
        except UnreadableVideo as error:
            raise Refused(f"unreadable: {one_line(error)}") from error
        if info.num_frames < self.min_frames:
            raise Refused(f"too short: {info.num_frames} of at least {self.min_frames} frames")
        yield {
            **{name: item[name] for name in ("shard", "key", "offset", "size", "caption", "split")},
            **{name: item[name] for name in ("json_offset", "json_size", "json_checksum")},
            "num_frames": info.num_frames,
            "width": info.width,
            "height": info.height,
            "fps": float(info.fps),
            "checksum": checksum(video),
        }

    def _files(self) -> Iterator[str]:
        """Names of all tars, packed ones too."""
        if not os.path.isdir(self.path):
            found = glob.iglob(self.path, recursive=True)
        else:
            found = (
                os.path.join(folder, name)
                for folder, _, names in os.walk(self.path, onerror=_cannot_search)
                for name in names
                if not name.startswith(".")
            )
        yield from (name for name in found if name.endswith((".tar", *COMPRESSED_TARS)))

    def _item(self, name: str) -> Item:
        item: Item = {"name": printable(name)}
        if not name.endswith(".tar"):
            return item | {"refusal": "compressed: it allows no random access; unpack it to .tar"}
        folder = self.path if os.path.isdir(self.path) else "/"
        try:
            facts = inside(Path(os.path.realpath(folder)), name).stat()
        except Refused as refusal:
            return item | {"refusal": str(refusal)}
        if item["name"] != name:
            return item | {"refusal": "unreadable: its name is no text"}
        return {"name": os.path.realpath(name), "stamp": [facts.st_size, facts.st_mtime_ns]}

    def _with_splits(self, samples: list[Item], ask: Ask) -> list[Item]:
        free = {sample["key"]: sample for sample in samples if sample.get("split") == ""}

        def usable(key: str) -> bool:
            (answer,) = ask("usable", self.is_usable, [free[key]])
            return answer is True

        held_out = hold_out(free, self.val_fraction, usable)
        for key, sample in free.items():
            sample["split"] = "val" if key in held_out else "train"
        return samples

    def is_usable(self, item: Item) -> bool:
        return any(True for _ in self.samples(item))


def _sample_item(shard: str, group: Group, read: Callable[[Member], bytes]) -> Item:
    """The group as an item for `samples`, or as one that is refused."""
    item: Item = {"name": f"{shard}/{group.key}"}
    try:
        if fault := group.fault():
            raise Refused(fault)
        (video,) = group.videos
        if video.size > LARGEST_MEMBER:
            size = f"{video.size} bytes, more than {LARGEST_MEMBER}"
            raise Refused(f"oversize: {video.name} has {size}")
        return item | {
            "shard": shard,
            "key": group.key,
            "offset": video.offset,
            "size": video.size,
            **_described(group, read),
        }
    except Refused as refusal:
        return item | {"refusal": str(refusal)}


def _described(group: Group, read: Callable[[Member], bytes]) -> dict[str, Any]:
    """What the texts of a group say of it. Raises Refused."""
    described: dict[str, Any] = {"json_offset": 0, "json_size": 0, "json_checksum": "", "split": ""}
    caption = ""
    for suffix in (".json", ".txt"):
        if suffix not in group.members or (caption and suffix == ".txt"):
            continue
        member = group.members[suffix]
        check_size(member.name, member.size)
        data = read(member)
        if suffix == ".json":
            split = json_object(data, member.name).get("split")
            described["split"] = split if split in SPLITS else ""
            described["json_offset"], described["json_size"] = member.offset, member.size
            described["json_checksum"] = checksum(data)
        caption = clean(caption_in(data, member.name))
    if not caption:
        raise Refused("no caption")
    return described | {"caption": caption}


def _read(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise Refused("cut off: the shard became shorter while it was read")
    return data


def _cannot_search(error: OSError) -> None:
    raise ConfigError(f"cannot search {error.filename}: {error.strerror}") from error
