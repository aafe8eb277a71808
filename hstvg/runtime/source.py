"""Where clips come from: the protocol of a source, and the rendered shape world."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from hstvg.runtime.errors import ConfigError
from hstvg.runtime.shard import Sample

Item = dict[str, Any]
"""A clip to be made, as plain JSON; `name` is what rejected.jsonl calls its source."""


class Refused(Exception):
    """A clip that cannot enter the data set. The message is `kind` or `kind: detail`."""


@runtime_checkable
class Source(Protocol):
    """Where clips come from. A dataclass: its fields are recorded as the data set's transform."""

    def items(self) -> list[Item]:
        """All clips to be made, cheaply and in a stable order. Raises ConfigError."""
        ...

    def sample(self, item: Item) -> Sample:
        """Make one clip; depends on the item and the fields only. Raises Refused."""
        ...

    def estimate_bytes(self, items: Sequence[Item]) -> int:
        """Roughly how many bytes of MP4 the items will give."""
        ...


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

    def estimate_bytes(self, items: Sequence[Item]) -> int:
        tried = items[:8]
        return sum(len(self.sample(item).video) for item in tried) * len(items) // len(tried)
