"""Which clips are made of a video, of what form, and which of them are too short or too still."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hstvg.runtime.caption import printable
from hstvg.runtime.shard import Sample
from hstvg.runtime.source import DISK_FULL, Refused, one_line

if TYPE_CHECKING:
    from hstvg.data.transcode import Form
    from hstvg.data.video import VideoInfo

Span = tuple[float, float | None]
"""Start and end in seconds after the first frame; None is the end of the video."""
WHOLE: Span = (0.0, None)


class Cut(NamedTuple):
    """What a clip is made of."""

    start_s: float
    """Seconds after the first frame."""
    end_s: float | None
    """None is the end of the video."""
    caption: str


@dataclass(frozen=True, kw_only=True)
class ClipRules:
    """What every clip of a data set is made into and must be."""

    form: "Form"
    min_frames: int = 2
    min_s: float = 0.0
    min_motion: float | None = None
    """Frame widths per second; None lets still clips pass."""

    def clips(
        self, path: Path, cuts: Sequence[Cut], *, key: str, facts: dict[str, Any]
    ) -> Iterator[Sample | Refused]:
        """A sample of every cut, or why it is refused. Of several, the keys are KEY-p000 and so on.

        Args:
            path: the video.
            cuts: what to make clips of.
            key: of the sample, or what its parts' keys begin with.
            facts: what the JSON member holds beside caption and shape: `split` and `source`.

        Raises:
            Refused: the video cannot be read.
        """
        for number, cut in enumerate(cuts):
            part = "" if len(cuts) == 1 else f"-p{number:03d}"
            try:
                video, info = self._make(path, cut)
            except _Rejected as reason:
                yield Refused(f"{reason}{part and f' (part {part[1:]}, from {cut.start_s:.2f} s)'}")
                continue
            place = {"start_s": round(cut.start_s, 3)} if part else {}
            said = {**facts, "caption": cut.caption, **place, **_shape(info)}
            yield Sample(key=f"{key}{part}", video=video, facts=said)

    def _make(self, path: Path, cut: Cut) -> "tuple[bytes, VideoInfo]":
        from hstvg.data.transcode import transcode

        with readable():
            video, info = transcode(path, self.form, start_s=cut.start_s, end_s=cut.end_s)
        if info.num_frames < self.min_frames:
            raise _Rejected(f"too short: {info.num_frames} of at least {self.min_frames} frames")
        if info.duration_s < self.min_s:
            raise _Rejected(f"too short: {info.duration_s:.2f} of at least {self.min_s:.2f} s")
        if self.min_motion is not None:
            from hstvg.data.motion import mean_motion

            motion = mean_motion(video)
            if motion < self.min_motion:
                raise _Rejected(
                    f"still: {motion:.4f} of at least {self.min_motion} frame widths a second"
                )
        return video, info


class _Rejected(Exception):
    """One clip is not wanted; its video can be read."""


def spans_of(path: Path, *, cuts: bool, max_s: float | None) -> list[Span]:
    """Where to cut a video: at its scene cuts, then into equal parts of at most `max_s` seconds.

    Raises:
        Refused: it cannot be read.
    """
    if not cuts and max_s is None:
        return [WHOLE]
    with readable():
        if cuts:
            from hstvg.data.cuts import scene_cuts

            scenes = scene_cuts(path)
        else:
            from hstvg.data.video import probe_video

            scenes = [(0.0, probe_video(path).duration_s)]
    spans = [part for scene in scenes for part in _equal_parts(scene, max_s)]
    # The last one goes on to the end: how long the last frame is shown is a guess.
    return [*spans[:-1], (spans[-1][0], None)]


@contextmanager
def readable() -> Iterator[None]:
    """Whatever cannot be read inside is refused.

    Raises:
        Refused: it is no video, or a damaged one.
        OSError: there is no space for temporary files.
    """
    from hstvg.data.video import UnreadableVideo

    try:
        yield
    except UnreadableVideo as error:
        if getattr(error.__cause__, "errno", None) in DISK_FULL:
            raise OSError(errno.ENOSPC, "no space for temporary files") from error
        raise Refused(f"unreadable: {one_line(error)}") from error


def clip_facts(*, held_out: bool, source: str) -> dict[str, Any]:
    """What the JSON member of a clip of somebody's video says of where it belongs."""
    return {"split": "val" if held_out else "train", "source": printable(source)}


def _equal_parts(scene: tuple[float, float], max_s: float | None) -> list[Span]:
    start_s, end_s = scene
    length = end_s - start_s
    # A frame too long by rounding is no reason for one part more.
    number = 1 if max_s is None else max(1, -int(-(length - 1e-3) // max_s))
    edges = [start_s + length * i / number for i in range(number + 1)]
    return list(pairwise(edges))


def _shape(info: "VideoInfo") -> dict[str, Any]:
    return {
        "fps": float(info.fps),
        "num_frames": info.num_frames,
        "width": info.width,
        "height": info.height,
    }
