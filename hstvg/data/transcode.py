"""Any footage as the clips that shards hold: H.264 of one form, upright, square, at a steady rate.

FFmpeg's filters do the work, one chain per kind of frame that a stream holds:
deinterlace -> turn upright -> scale with square pixels -> cut or fill -> yuv420p.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, cast

import numpy as np
from av.error import BlockingIOError, EOFError
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from hstvg.data.clock import CLOCK, clocked_frames
from hstvg.data.video import (
    MAX_FPS,
    MAX_FRAMES,
    MAX_PIXELS,
    Source,
    UnreadableVideo,
    VideoInfo,
    as_rate,
    check_limit,
    opened,
    probe_video,
    rate_of,
    write_mp4,
)

POLICIES = ("fit", "crop", "pad")
UNSPECIFIED = 2
"""FFmpeg's AVCOL_SPC_UNSPECIFIED."""
SCALER = "bicubic+accurate_rnd+bitexact"
"""Bit-exact, so that shards do not depend on the processor that made them."""
TRANSPOSE = {
    (True, False): "clock",
    (False, True): "cclock",
    (True, True): "cclock_flip",
    (False, False): "clock_flip",
}
"""By the signs of b and c in the display matrix."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What every clip of a data set is made into.

    Raises:
        ValueError: a size that the policy lacks or forbids, or a number out of range.
    """

    policy: str = "fit"
    """fit: scaled down to `max_side`, the aspect kept. crop: scaled to cover height x width, the
    centre cut out. pad: scaled to go into height x width, the rest filled with black."""
    max_side: int = 256
    """Of fit: pixels of the longer side at most; nothing is enlarged."""
    height: int | None = None
    """Of crop and pad: pixels, even."""
    width: int | None = None
    """Of crop and pad: pixels, even."""
    fps: float | None = None
    """Frames per second; None keeps the average rate of each video."""
    gop: int = 16
    """At most this many frames from one key frame to the next. 15 to 30 halves the cost of a
    window at a random place, for a file a third larger than with few key frames."""
    crf: int = 18
    """Quality of x264, 0 (lossless) to 51."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy}: must be one of {', '.join(POLICIES)}")
        sides = (self.height, self.width)
        if self.policy == "fit" and sides != (None, None):
            raise ValueError("policy=fit takes max_side; height and width belong to crop and pad")
        if self.policy != "fit" and any(not side or side < 2 or side % 2 for side in sides):
            raise ValueError(
                f"policy={self.policy} needs an even height and width, not {sides[0]} x {sides[1]}"
            )
        if self.max_side < 2 or (self.height or 0) * (self.width or 0) > MAX_PIXELS:
            raise ValueError(f"frames of 2 to {MAX_PIXELS} pixels can be made, not {self}")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise ValueError(f"fps={self.fps}: must be above 0 and at most {MAX_FPS}")
        if self.gop < 1 or not 0 <= self.crf <= 51:
            raise ValueError(f"gop={self.gop} crf={self.crf}: gop from 1, crf from 0 to 51")


def transcode(
    source: Source, form: Form, *, start_s: float = 0.0, end_s: float | None = None
) -> tuple[bytes, VideoInfo]:
    """The video as H.264 MP4 with short groups of pictures, at a constant rate, without sound.

    Frames come out upright, progressive, with square pixels and even sides, in BT.601 of limited
    range. They move to the nearest slot of the rate by repeating and dropping, so that motion keeps
    its true speed. The same input gives the same bytes.

    Args:
        source: the video.
        form: what to make of it.
        start_s: where to begin, in seconds after the first frame.
        end_s: where to stop; None is the end.

    Raises:
        UnreadableVideo: as `probe_video`, or nothing is shown in that span.
    """
    with opened(source) as (container, stream):
        given_rate = _average_rate(source, stream)
        rate = as_rate(form.fps) if form.fps else given_rate
        frames = clocked_frames(container, stream, start_s=start_s)
        frames = _between(frames, start_s, end_s, 1 / given_rate)
        images = _shaped(frames, stream, form)
        images = _at_constant_rate(images, rate, 1 / given_rate)
        data = write_mp4(images, rate, gop=form.gop, crf=form.crf)
    return data, probe_video(data)


def _average_rate(source: Source, stream: VideoStream) -> Fraction:
    rate = rate_of(stream)
    if rate < MAX_FPS:
        return rate
    # Recordings of browsers state the tick of their clock as the rate of their pictures.
    with opened(source) as (container, again):
        stamps = [packet.pts for packet in container.demux(again) if packet.pts is not None]
        tick = again.time_base or CLOCK
    span = (max(stamps, default=0) - min(stamps, default=0)) * tick
    return min(rate, (len(stamps) - 1) / span) if span else rate


def _between(
    frames: Iterator[VideoFrame], start_s: float, end_s: float | None, interval: Fraction
) -> Iterator[VideoFrame]:
    """Frames on show from `start_s` to `end_s`, their clock set to 0 at the start."""
    # Half an interval of tolerance: cuts come from rounded times.
    start = round((Fraction(start_s) + interval / 2) / CLOCK)
    shift = round(Fraction(start_s) / CLOCK)
    end = None if end_s is None else round((Fraction(end_s) - interval / 2) / CLOCK)
    held, last = None, 0
    for frame in frames:
        now = frame.pts or 0
        if held is not None and end is not None and now > max(start, end):
            break
        if held is not None and now > start:
            yield held
        held, last = frame, now
        frame.pts = max(0, now - shift)
    if held is None or last + interval / CLOCK <= start:
        raise UnreadableVideo(f"it shows nothing from {start_s:.3f} s on")
    yield held


def _at_constant_rate(
    frames: Iterator[VideoFrame], rate: Fraction, interval: Fraction
) -> Iterator[VideoFrame]:
    """Frames moved to the nearest slot of a constant rate; empty slots repeat the one before.

    The last frame is on show for `interval` seconds.
    """
    held, shown, now = None, 0, Fraction(0)
    for frame in frames:
        now = (frame.pts or 0) * (frame.time_base or CLOCK)
        # Rounding forgives containers that store time in milliseconds.
        slot = round(now * rate)
        check_limit("frames", slot, MAX_FRAMES)
        while held is not None and shown < slot:
            yield held
            shown += 1
        held = frame
    for _ in range(shown, max(1, round((now + interval) * rate))):
        if held is not None:
            yield held


class _Kind(NamedTuple):
    """Frames of one kind can pass through one chain of filters."""

    width: int
    height: int
    pixel_format: str
    color_space: int
    color_range: int
    interlaced: bool
    turns: tuple[tuple[str, str], ...]
    """Filters that make it upright: names and arguments."""

    @property
    def lies_on_its_side(self) -> bool:
        return any(name == "transpose" for name, _ in self.turns)


def _shaped(frames: Iterator[VideoFrame], stream: VideoStream, form: Form) -> Iterator[VideoFrame]:
    """Frames in the form; where their kind changes in mid-stream, the first one's size stays."""
    kind = size = chain = None
    for frame in frames:
        found = _kind_of(frame, was_interlaced=kind is not None and kind.interlaced)
        if chain is None or found != kind:
            if chain is not None:
                chain.push(None)
                yield from _pulled(chain)
            kind, square = found, _square_size(found, stream.sample_aspect_ratio)
            size = size or _size_in(form, square)
            chain = _chain(kind, form, square, size)
        chain.push(frame)
        yield from _pulled(chain)
    if chain is not None:
        chain.push(None)
        yield from _pulled(chain)


def _kind_of(frame: VideoFrame, *, was_interlaced: bool) -> _Kind:
    check_limit("pixels a frame", frame.width * frame.height, MAX_PIXELS)
    return _Kind(
        width=frame.width,
        height=frame.height,
        pixel_format=frame.format.name,
        color_space=UNSPECIFIED if frame.format.is_rgb else frame.colorspace,
        color_range=frame.color_range,
        # Film on interlaced carriers alternates: once in, the filter stays, and lets film pass.
        interlaced=frame.interlaced_frame or was_interlaced,
        turns=_turns_of(frame),
    )


def _turns_of(frame: VideoFrame) -> tuple[tuple[str, str], ...]:
    """Filters that do what the display matrix asks for, to the nearest quarter turn."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return ()
    # Rows of (a b u), (c d v), (x y w): a point goes to x' = a x + c y, y' = b x + d y.
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return (("transpose", TRANSPOSE[b > 0, c > 0]),)
    mirrors = (("hflip", a < 0), ("vflip", d < 0))
    return tuple((name, "") for name, wanted in mirrors if wanted)


def _square_size(kind: _Kind, aspect: Fraction | None) -> tuple[float, float]:
    """Upright width and height with square pixels; neither side gets more than it had."""
    ratio = float(aspect or 1)
    width, height = kind.width * min(1.0, ratio), kind.height * min(1.0, 1.0 / ratio)
    return (height, width) if kind.lies_on_its_side else (width, height)


def _size_in(form: Form, square: tuple[float, float]) -> tuple[int, int]:
    if form.policy != "fit":
        return cast(int, form.width), cast(int, form.height)
    shrink = min(1.0, form.max_side / max(square))
    # Down, so that no side exceeds what was asked for; the sum forgives rounding just below.
    width, height = (max(2, 2 * int(side * shrink / 2.0 + 1e-6)) for side in square)
    return width, height


def _chain(kind: _Kind, form: Form, square: tuple[float, float], size: tuple[int, int]) -> Graph:
    """The filters for one kind of frame; they run on this thread."""
    graph = Graph()
    graph.threads = 1
    scaled = size
    if _size_in(form, square) != size or form.policy != "fit":
        ratios = [want / have for want, have in zip(size, square, strict=True)]
        grow = max(ratios) if form.policy == "crop" else min(ratios)
        scaled = tuple(max(2, 2 * round(side * grow / 2)) for side in square)
    # Turned after scaling, which leaves less to turn.
    across, down = reversed(scaled) if kind.lies_on_its_side else scaled
    steps = [
        *([("bwdif", "mode=send_frame:deint=interlaced")] if kind.interlaced else []),
        ("scale", f"{across}:{down}:out_color_matrix=bt601:out_range=tv:flags={SCALER}"),
        ("format", "yuv420p"),
        *kind.turns,
        *([("crop", f"{size[0]}:{size[1]}")] if form.policy == "crop" else []),
        *([("pad", f"{size[0]}:{size[1]}:-1:-1:black")] if form.policy != "crop" else []),
        ("setsar", "1"),
        ("buffersink", ""),
    ]
    source = graph.add(
        "buffer",
        f"width={kind.width}:height={kind.height}:pix_fmt={kind.pixel_format}:time_base={CLOCK}"
        f":colorspace={kind.color_space}:range={kind.color_range}",
    )
    graph.link_nodes(source, *(graph.add(name, arguments) for name, arguments in steps))
    graph.configure()
    return graph


def _pulled(chain: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield chain.vpull()
        except (BlockingIOError, EOFError):
            return
