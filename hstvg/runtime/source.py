"""Where clips come from: the protocol of a source, and the rendered shape world."""

import errno
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hstvg.runtime.errors import ConfigError
from hstvg.runtime.shard import Sample

Item = dict[str, Any]
"""One thing that clips come from (a scene, a video, a shard), as plain JSON.

`name` is what rejected.jsonl calls its source. Where `refusal` is set, nothing is made of it. Where
`shard` is set, it is a sample that already lies in that tar, which is indexed and not copied.
"""

Found = Mapping[str, Any]
"""The index row of a sample that already lies in a shard."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors that no item is to blame for."""


class Refused(Exception):
    """What cannot enter the data set. The message is `kind` or `kind: detail`.

    Raised, it refuses all of the item that is still to come; yielded, one part of it.
    """


@runtime_checkable
class Ask(Protocol):
    """Puts a question to every item, on Ray: a crash costs one item, and answers are kept."""

    def __call__(
        self, name: str, question: Callable[[Item], Any], items: Sequence[Item]
    ) -> list[Any]:
        """An answer per item, as plain JSON; a Refused where it was raised or a worker crashed."""
        ...


@runtime_checkable
class Source(Protocol):
    """Where clips come from. A dataclass: its fields are recorded as the data set's transform."""

    def items(self) -> list[Item]:
        """All there is, cheaply and in a stable order. Raises ConfigError."""
        ...

    def outlook(self, items: Sequence[Item], clips_per_shard: int) -> str:
        """What these items would become, in a few words and without much work."""
        ...

    def settle(self, items: Sequence[Item], ask: Ask) -> list[Item]:
        """The items that clips are made from, after whatever must be known of all of them first."""
        ...

    def samples(self, item: Item) -> Iterator[Sample | Found | Refused]:
        """The clips of one item, in order; they depend on the item and the fields only.

        Raises:
            Refused: nothing more can come of this item.
        """
        ...


def inside(root: Path, name: str) -> Path:
    """The file `name` of the folder `root`.

    Raises:
        Refused: a symlink leads out of the folder, or it is no regular file.
    """
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise Refused(f"symlink leaves the folder: {name}")
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise Refused(f"unreadable: {name} is no regular file")
    except (OSError, RuntimeError) as error:  # a loop of symlinks
        raise Refused(f"unreadable: {name}: {one_line(error)}") from error
    return path


def count_shards(num_clips: int, clips_per_shard: int) -> str:
    number = -(-num_clips // clips_per_shard)
    return f"{number} shard{'s' * (number != 1)}"


def size_text(num_bytes: int) -> str:
    """Bytes as a person reads them."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"


def one_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True, kw_only=True)
class ShapeSource:
    """Clips of the shape world, rendered."""

    num_clips: int = 2048
    seed: int = 0
    num_frames: int = 16
    fps: float = 8.0
    height: int = 32
    width: int = 32
    max_shapes: int = 3
    camera_fraction: float = 0.2
    style_fraction: float = 0.3
    crf: int = 18
    """Quality of x264. Lossless would win 0.3 dB only: halved colour planes are what costs."""

    def __post_init__(self) -> None:
        # 8 and 8.0 are one setting, so they must make one data set.
        object.__setattr__(self, "fps", float(self.fps))

    def items(self) -> list[Item]:
        if self.num_clips < 1:
            raise ConfigError(f"source.num_clips={self.num_clips}: must be at least 1")
        # Seeds of different data sets must not overlap, or one's test clips train another.
        first = self.seed << 32
        items = [{"name": f"{n:08d}", "seed": first + n} for n in range(self.num_clips)]
        try:
            self.sample(items[0])  # a number out of range dies here, before Ray starts
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"source=shapes cannot be rendered: {error}") from error
        return items

    def outlook(self, items: Sequence[Item], clips_per_shard: int) -> str:
        tried = items[:8]
        num_bytes = sum(len(self.sample(item).video) for item in tried) * len(items) // len(tried)
        shards = count_shards(len(items), clips_per_shard)
        return f"{len(items)} clips in {shards}, about {size_text(num_bytes)}"

    def settle(self, items: Sequence[Item], ask: Ask) -> list[Item]:
        return list(items)

    def samples(self, item: Item) -> Iterator[Sample]:
        yield self.sample(item)

    def sample(self, item: Item) -> Sample:
        from hstvg.data.shapes import render, sample_scene, split_of
        from hstvg.data.video import encode_video
        from hstvg.scene.grammar import write_caption

        scene = sample_scene(
            item["seed"],
            max_shapes=self.max_shapes,
            camera_fraction=self.camera_fraction,
            style_fraction=self.style_fraction,
            duration_s=self.num_frames / self.fps,
        )
        size = {"num_frames": self.num_frames, "height": self.height, "width": self.width}
        pixels = render(scene, fps=self.fps, **size).pixels
        facts = {
            "caption": write_caption(scene),
            "fps": self.fps,
            "split": split_of(scene),
            "scene": scene.model_dump(mode="json"),
            **size,
        }
        video = encode_video(pixels, self.fps, crf=self.crf)
        return Sample(key=item["name"], video=video, facts=facts)
