"""Shards damaged in every way that was thought of, tiny, made when the tests run.

Each begins as a clean shard of four samples. `SHARDS` says of every kind which samples survive it,
what is refused and why, and how many faults it is for a data set whose shard became this.
"""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hstvg.data.video import encode_video
from hstvg.runtime.index import write_index
from hstvg.runtime.shard import Sample, write_shard

NUM_SAMPLES = 4
BLOCK = 512
Entry = tuple[str | tarfile.TarInfo, bytes]
"""A member: its name, or its whole header, and its data."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A way for a shard to be damaged."""

    make: Callable[[str, list[Sample]], bytes]
    """Name of the kind and its samples -> the damaged file."""
    kept: Sequence[int] = (0, 1, 2, 3)
    """Samples that can be indexed without knowing what the shard was."""
    new: Sequence[str] = ()
    """Keys that were not there before, of samples as good as any."""
    refused: dict[str, int] = field(default_factory=dict)
    """What that refuses: kind of reason -> how many."""
    faults: int
    """What `verify` finds, which knows what the shard was."""

    def keys(self, name: str) -> set[str]:
        return {f"{name}-{number}" for number in self.kept} | set(self.new)


def make_samples(prefix: str) -> list[Sample]:
    """Four samples with the keys PREFIX-0 to PREFIX-3."""
    facts = {"fps": 8.0, "num_frames": 4, "width": 16, "height": 16, "split": "train"}
    return [
        Sample(
            key=f"{prefix}-{number}",
            video=_video(number),
            facts={**facts, "caption": f"clip {number}"},
        )
        for number in range(NUM_SAMPLES)
    ]


def make_damaged_shards(folder: Path) -> dict[str, Path]:
    """Kind -> a shard KIND.tar that is damaged in this way.

    Loading the pickle in one of them writes a file "unpickled" into `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = {name: folder / f"{name}.tar" for name in SHARDS}
    for name, path in shards.items():
        content = SHARDS[name].make(name, make_samples(name))
        path.write_bytes(content.replace(CANARY, harmful_pickle(folder / "unpickled")))
    return shards


def make_damaged_dataset(folder: Path) -> Path:
    """A data set with one shard for every kind, damaged after it was made."""
    (folder / "shards").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    for name in SHARDS:
        path = folder / "shards" / f"{name}.tar"
        rows += write_shard(path, make_samples(name))
        facts[f"shards/{name}.tar"] = {
            "num_clips": NUM_SAMPLES,
            "num_bytes": path.stat().st_size,
            "sha256": _sha256(path.read_bytes()),
        }
    (folder / "rejected.jsonl").touch()
    record = {
        "num_clips": len(rows),
        "num_bytes": sum(shard["num_bytes"] for shard in facts.values()),
        "index_hash": write_index(folder, rows).hash,
        "shards": facts,
    }
    (folder / "dataset.json").write_text(json.dumps(record))
    make_damaged_shards(folder / "shards")
    return folder


# ---- tars -------------------------------------------------------------------------------------


def entries(samples: Sequence[Sample]) -> list[Entry]:
    return [
        entry
        for sample in samples
        for entry in (
            (f"{sample.key}.mp4", sample.video),
            (f"{sample.key}.json", json.dumps(sample.facts, sort_keys=True).encode()),
        )
    ]


def tar_of(members: Sequence[Entry], *, style: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=style) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def clean(samples: Sequence[Sample]) -> bytes:
    return tar_of(entries(samples))


def place_of(content: bytes, name: str) -> int:
    """Where the data of a member begin."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return tar.getmember(name).offset_data


def end_of(content: bytes) -> int:
    """Where the zeros begin that end the tar."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + -(-last.size // BLOCK) * BLOCK


def special(name: str, kind: bytes, target: str = "") -> Entry:
    """A member that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def altered(content: bytes, offset: int, data: bytes) -> bytes:
    return content[:offset] + data + content[offset + len(data) :]


@lru_cache
def _video(number: int) -> bytes:
    ramp = (np.arange(16 * 16 * 3).reshape(16, 16, 3) * (number + 1)) % 256
    frames = np.stack([np.roll(ramp, step, axis=1) for step in range(4)]).astype(np.uint8)
    return encode_video(frames, fps=8.0)


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


# ---- ways to be damaged -----------------------------------------------------------------------


def more(*members: Entry) -> Callable[[str, list[Sample]], bytes]:
    """The clean shard and some members after it; {} in a name stands for the kind."""

    def make(kind: str, samples: list[Sample]) -> bytes:
        named = [
            (name.replace("{}", kind) if isinstance(name, str) else _renamed(name, kind), data)
            for name, data in members
        ]
        return tar_of([*entries(samples), *named])

    return make


def _renamed(info: tarfile.TarInfo, kind: str) -> tarfile.TarInfo:
    return info.replace(name=info.name.replace("{}", kind))


def rebuilt(change: Callable[[list[Entry]], list[Entry]]) -> Callable[[str, list[Sample]], bytes]:
    """The members in another order, or without some."""
    return lambda kind, samples: tar_of(change(entries(samples)))


def cut_in_member(kind: str, samples: list[Sample]) -> bytes:
    content = clean(samples)
    return content[: place_of(content, f"{kind}-2.mp4") + 100]


def cut_on_boundary(kind: str, samples: list[Sample]) -> bytes:
    content = clean(samples)
    return content[: place_of(content, f"{kind}-2.mp4") - BLOCK]


def cut_in_header(kind: str, samples: list[Sample]) -> bytes:
    content = clean(samples)
    return content[: place_of(content, f"{kind}-2.mp4") - 100]


def no_end(kind: str, samples: list[Sample]) -> bytes:
    content = clean(samples)
    return content[: end_of(content)]


def broken_header(kind: str, samples: list[Sample]) -> bytes:
    content = clean(samples)
    return altered(content, place_of(content, f"{kind}-2.mp4") - BLOCK + 50, b"\xff\xff")


def broken_first_header(kind: str, samples: list[Sample]) -> bytes:
    return altered(clean(samples), 50, b"\xff\xff")


def huge_declared(kind: str, samples: list[Sample]) -> bytes:
    content = clean(samples)
    info = tarfile.TarInfo(f"{kind}-2.mp4")
    info.size = 1 << 40
    header = info.tobuf(tarfile.GNU_FORMAT)
    return altered(content, place_of(content, f"{kind}-2.mp4") - BLOCK, header)


def flipped_video(kind: str, samples: list[Sample]) -> bytes:
    content = clean(samples)
    return altered(content, content.index(b"moov", place_of(content, f"{kind}-2.mp4")), b"lost")


def flipped_json(kind: str, samples: list[Sample]) -> bytes:
    content = clean(samples)
    return altered(content, place_of(content, f"{kind}-2.json"), b"z")


def dotted_keys(kind: str, samples: list[Sample]) -> bytes:
    return tar_of([(name.replace(".", ".v000."), data) for name, data in entries(samples)])


def compressed(kind: str, samples: list[Sample]) -> bytes:
    import gzip

    return gzip.compress(clean(samples))


def two_tars(kind: str, samples: list[Sample]) -> bytes:
    return clean(samples) + clean(make_samples(f"{kind}-second"))


def long_names(kind: str, samples: list[Sample]) -> bytes:
    extra = [(f"{kind}-{'x' * 150}{suffix}", data) for suffix, data in _pair()]
    return tar_of([*entries(samples), *extra], style=tarfile.PAX_FORMAT)


def no_text_in_name(kind: str, samples: list[Sample]) -> bytes:
    extra = f"{kind}-\udcff.mp4"
    return tar_of([*entries(samples), (extra, b"x")], style=tarfile.GNU_FORMAT)


class _Writes:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


CANARY = b"CANARY" * 40


def harmful_pickle(path: Path) -> bytes:
    return pickle.dumps(_Writes(os.fspath(path))).ljust(len(CANARY), b"\0")


def _pair() -> list[tuple[str, bytes]]:
    return [(".mp4", _video(0)), (".json", b'{"caption": "one more"}')]


JSON = b'{"caption": "one more"}'
SHARDS: dict[str, Kind] = {
    "cut_in_member": Kind(make=cut_in_member, kept=(0, 1), refused={"cut off": 1}, faults=3),
    "cut_on_boundary": Kind(
        make=cut_on_boundary, kept=(0, 1), refused={"no end mark": 1}, faults=4
    ),
    "cut_in_header": Kind(make=cut_in_header, kept=(0, 1), refused={"cut off": 1}, faults=4),
    "no_end": Kind(make=no_end, refused={"no end mark": 1}, faults=2),
    "broken_header": Kind(make=broken_header, kept=(0, 1), refused={"broken header": 1}, faults=3),
    "broken_first_header": Kind(make=broken_first_header, kept=(), refused={"no tar": 1}, faults=3),
    "empty": Kind(make=lambda kind, samples: b"", kept=(), refused={"empty": 1}, faults=6),
    "text": Kind(
        make=lambda kind, samples: b"I am no tar.\n" * 99, kept=(), refused={"no tar": 1}, faults=6
    ),
    "compressed": Kind(make=compressed, kept=(), refused={"compressed": 1}, faults=6),
    "huge_declared": Kind(make=huge_declared, kept=(0, 1), refused={"cut off": 1}, faults=2),
    "huge_json": Kind(
        make=rebuilt(lambda e: [*e[:5], (e[5][0], e[5][1].ljust(2**20 + 1)), *e[6:]]),
        kept=(0, 1, 3),
        refused={"oversize": 1},
        faults=3,
    ),
    "flipped_video": Kind(make=flipped_video, kept=(0, 1, 3), refused={"unreadable": 1}, faults=2),
    "flipped_json": Kind(
        make=flipped_json, kept=(0, 1, 3), refused={"unreadable caption": 1}, faults=2
    ),
    "missing_json": Kind(
        make=rebuilt(lambda e: [*e[:5], *e[6:]]),
        kept=(0, 1, 3),
        refused={"no caption": 1},
        faults=3,
    ),
    "missing_video": Kind(
        make=rebuilt(lambda e: [*e[:4], *e[5:]]), kept=(0, 1, 3), refused={"no video": 1}, faults=3
    ),
    "swapped": Kind(make=rebuilt(lambda e: [*e[:2], e[4], e[3], e[2], *e[5:]]), faults=3),
    "not_contiguous": Kind(make=rebuilt(lambda e: [*e[::2], *e[1::2]]), faults=5),
    "duplicate_key": Kind(
        make=rebuilt(lambda e: [*e, *e[:2]]), refused={"duplicate key": 1}, faults=2
    ),
    "two_videos": Kind(
        make=rebuilt(lambda e: [*e, (e[0][0].replace("mp4", "webm"), e[0][1])]),
        kept=(1, 2, 3),
        refused={"ambiguous": 1},
        faults=1,
    ),
    "dotted_keys": Kind(make=dotted_keys, kept=(), refused={"dotted key": 4}, faults=9),
    "absolute_path": Kind(
        make=more(("/tmp/{}-evil.mp4", b"x")), refused={"unsafe member": 1}, faults=2
    ),
    "path_up": Kind(make=more(("../{}-evil.mp4", b"x")), refused={"unsafe member": 1}, faults=2),
    "symbolic_link": Kind(
        make=more(special("{}-4.mp4", tarfile.SYMTYPE, "/etc/hostname"), ("{}-4.json", JSON)),
        refused={"unsafe member": 1, "no video": 1},
        faults=3,
    ),
    "hard_link": Kind(
        make=more(special("{}-4.mp4", tarfile.LNKTYPE, "{}-0.mp4"), ("{}-4.json", JSON)),
        refused={"unsafe member": 1, "no video": 1},
        faults=3,
    ),
    "device_and_pipe": Kind(
        make=more(special("{}-4.mp4", tarfile.CHRTYPE), special("{}-5.mp4", tarfile.FIFOTYPE)),
        refused={"unsafe member": 2},
        faults=3,
    ),
    "sparse": Kind(
        make=more(special("{}-4.mp4", tarfile.GNUTYPE_SPARSE)),
        refused={"unsafe member": 1},
        faults=2,
    ),
    "pickle": Kind(make=more(("{}-0.pkl", CANARY)), refused={"unsafe member": 1}, faults=2),
    "two_tars": Kind(make=two_tars, refused={"data after the end": 1}, faults=2),
    "long_names": Kind(make=long_names, new=("long_names-" + "x" * 150,), faults=2),
    "no_text_in_name": Kind(make=no_text_in_name, refused={"unsafe member": 1}, faults=2),
}
