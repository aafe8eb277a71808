"""One clock for all videos: frames of any container at times that start at 0 and never fall."""

from collections.abc import Iterator
from fractions import Fraction

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from hstvg.data.video import (
    MAX_DURATION_S,
    UnreadableVideo,
    check_limit,
    every_frame,
    rate_of,
)

CLOCK = Fraction(1, 1_000_000)
"""Seconds per tick."""
LONGEST_GAP_S = 600
"""A longer pause between two frames is a broken time stamp, not a pause."""
RESTART_S = 1
"""Time that runs back further than this is a clock that started anew; less is jitter."""


def clocked_frames(
    container: InputContainer, stream: VideoStream, *, start_s: float = 0.0
) -> Iterator[VideoFrame]:
    """Frames with time stamps in ticks of CLOCK after the start of the stream.

    A frame without a stamp comes one interval after the one before it. The first frames may lie
    before `start_s`: decoding begins at a key frame, or at the start where there is no way to one.

    Raises:
        UnreadableVideo: damage, a limit, or time stamps that make no sense.
    """
    interval = 1 / rate_of(stream)
    begin = _time(stream.start_time, stream.time_base)
    now = None
    for frame in _frames_from(container, stream, start_s):
        time = _time(frame.pts if frame.pts is not None else frame.dts, frame.time_base)
        begin = time if begin is None else begin
        time = None if time is None or begin is None else time - begin
        if now is None:
            now = max(time or Fraction(0), Fraction(0))
        elif time is None:
            now += interval
        elif time < now - RESTART_S:
            begin, now = (begin or 0) + time - now - interval, now + interval
        elif time - now > LONGEST_GAP_S:
            raise UnreadableVideo(f"its time stamps jump by more than {LONGEST_GAP_S} s")
        else:
            now = max(now, time)
        check_limit("seconds", float(now), MAX_DURATION_S)
        frame.pts, frame.time_base = round(now / CLOCK), CLOCK
        yield frame


def _frames_from(
    container: InputContainer, stream: VideoStream, start_s: float
) -> Iterator[VideoFrame]:
    if start_s > 0 and stream.start_time is not None and stream.time_base:
        target = stream.start_time + int(start_s / stream.time_base)
        container.seek(target, stream=stream)
        frames = every_frame(container, stream, from_start=False)
        first = next(frames, None)
        if first is not None and first.pts is not None and first.pts <= target:
            yield first
            yield from frames
            return
        container.seek(stream.start_time, stream=stream)
    yield from every_frame(container, stream)


def _time(stamp: int | None, tick: Fraction | None) -> Fraction | None:
    return None if stamp is None or tick is None else stamp * tick
