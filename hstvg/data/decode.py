"""Windows of videos for training: the frames on show at given moments, as RGB."""

from collections.abc import Iterator

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from hstvg.data.video import UnreadableVideo, opened


def decode_window(
    data: bytes, *, start_s: float, num_frames: int, fps: float, height: int, width: int
) -> UInt8[np.ndarray, "T H W 3"]:
    """RGB frames of the moments start_s + i / fps, scaled to cover and cropped at the centre.

    Each is the frame on show at its moment: the latest one at or before it, by time stamp, so a
    variable rate is handled. Where the video ends early its last frame is held.
    """
    clip = np.empty((num_frames, height, width, 3), np.uint8)
    # One scaler for all, on this thread: making one per frame costs more than decoding a small
    # frame, and handing a frame to the scaler's threads costs sixty times more than scaling it.
    reformatter = VideoReformatter()
    with opened(data) as (container, stream):
        cover = max(width / stream.width, height / stream.height)
        size = (max(width, round(stream.width * cover)), max(height, round(stream.height * cover)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        last = None
        for i, frame in enumerate(_on_show(container, stream, start_s, num_frames, fps)):
            if frame is last:
                clip[i] = clip[i - 1]
                continue
            last = frame
            image = reformatter.reformat(
                frame, width=size[0], height=size[1], format="rgb24", threads=1
            )
            clip[i] = image.to_ndarray()[top : top + height, left : left + width]
    return clip


def _on_show(
    container: InputContainer, stream: VideoStream, start_s: float, num_frames: int, fps: float
) -> Iterator[VideoFrame]:
    """For each wanted moment the latest frame at or before it, the last one repeated at the end."""
    origin = stream.start_time or 0
    tick = float(stream.time_base or 1)
    # Half a tick of tolerance: a moment that equals a time stamp must not fall before it.
    wanted = [start_s + i / fps + 0.5 * tick for i in range(num_frames)]
    if start_s > 0.0:
        container.seek(origin + int(start_s / tick), stream=stream, backward=True)
    held, shown = None, 0
    for frame in container.decode(stream):
        now = ((frame.pts or 0) - origin) * tick
        while held is not None and shown < num_frames and wanted[shown] < now:
            yield held
            shown += 1
        if shown == num_frames:
            return
        held = frame
    if held is None:
        raise UnreadableVideo(f"it holds no frame at {start_s:.3f} s")
    yield from [held] * (num_frames - shown)
