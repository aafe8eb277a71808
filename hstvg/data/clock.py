"""One clock for all videos: frames of any container at times that start at 0 and never fall."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

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
SEEK_LEADS_S = (0.0, 12.0)
"""Where there is no index a seek ends behind its target, at the next key frame; the second try
leads over any usual distance between two of them, the third is the start."""
RESTART_S = 0.5
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
    begin, frames = _frames_before(container, stream, start_s) if start_s > 0 else (None, None)
    now = None
    for frame in frames or every_frame(container, stream):
        time = _time_of(frame)
        begin = time if begin is None else begin
        time = None if time is None or begin is None else time - begin
        if now is None:
            now = max(time or Fraction(0), Fraction(0))
        elif time is None:
            now += interval
        elif time < now - Fraction(RESTART_S):
            begin, now = (begin or 0) + time - now - interval, now + interval
        elif time - now > LONGEST_GAP_S:
            raise UnreadableVideo(f"its time stamps jump by more than {LONGEST_GAP_S} s")
        else:
            now = max(now, time)
        check_limit("seconds", float(now), MAX_DURATION_S)
        frame.pts, frame.time_base = round(now / CLOCK), CLOCK
        yield frame


def _frames_before(
    container: InputContainer, stream: VideoStream, start_s: float
) -> tuple[Fraction, Iterator[VideoFrame]] | tuple[None, None]:
    """Time of the first frame of all, and frames from a key frame before `start_s` on.

    None where there is no way there; the container is then back at its start.
    """
    if stream.start_time is None or not stream.time_base:
        return None, None
    begin = _time_of(next(every_frame(container, stream)))
    target = (begin or 0) + Fraction(start_s)
    for lead_s in SEEK_LEADS_S:
        container.seek(int((target - Fraction(lead_s)) / stream.time_base), stream=stream)
        frames = every_frame(container, stream, from_start=False)
        first = next(frames, None)
        time = None if first is None else _time_of(first)
        if first is not None and time is not None and begin is not None and time <= target:
            return begin, chain([first], frames)
    container.seek(stream.start_time, stream=stream)
    return None, None


def _time_of(frame: VideoFrame) -> Fraction | None:
    stamp = frame.pts if frame.pts is not None else frame.dts
    return None if stamp is None or frame.time_base is None else stamp * frame.time_base
