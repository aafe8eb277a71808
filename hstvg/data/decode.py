"""Windows of videos for training: the frames on show at given moments, as RGB.

Decoding is the dearest part of feeding a model, so only frames that are shown, or that lead to one,
are decoded: behind the last one wanted, a group of pictures is dropped up to the next key frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from hstvg.data.video import MAX_PIXELS, UnreadableVideo, check_limit, opened

DECODERS = ("pyav", "torchcodec")
MAX_MEMBER_BYTES = 2**30
"""Of one clip in a shard: an hour at 2 Mbit/s, a hundred times what a clip should be."""
MAX_WINDOW_FRAMES = 2048
"""Decoded for one window: half a minute at 60 per second, after a group of pictures of the 250 that
x264 makes if not told otherwise. Beyond, the clips should be made anew with shorter groups."""
TOO_FAR = "frames to decode for one window"


def decode_window(
    data: bytes,
    *,
    start_s: float,
    num_frames: int,
    fps: float,
    height: int,
    width: int,
    decoder: str = "pyav",
) -> UInt8[np.ndarray, "T H W 3"]:
    """RGB frames of the moments start_s + i / fps, scaled to cover and cropped at the centre.

    Each is the frame on show at its moment: the latest one at or before it, by time stamp, so a
    variable rate is handled. Where the video ends early its last frame is held.

    Args:
        data: the video, as ingestion has made it; rotation and pixel aspect are not looked at.
        start_s: seconds after the first frame.
        num_frames: how many.
        fps: frames per second of the window, whatever the video has.
        height: pixels.
        width: pixels.
        decoder: pyav, or torchcodec where that is installed. Both show the same frames; where they
            have to be scaled, pixels differ slightly.

    Raises:
        UnreadableVideo: not a video, a broken one, one beyond the limits, or it shows nothing.
        ValueError: an unknown or missing decoder.
    """
    check_limit("bytes", len(data), MAX_MEMBER_BYTES)
    clip = np.empty((num_frames, height, width, 3), np.uint8)
    moments = [start_s + i / fps for i in range(num_frames)]
    check_decoder(decoder)
    decode = _decode_with_pyav if decoder == "pyav" else _decode_with_torchcodec
    decode(data, moments, clip)
    return clip


def check_decoder(decoder: str) -> None:
    """Raises ValueError, in one line, unless there is such a decoder and it is installed."""
    if decoder not in DECODERS:
        raise ValueError(f"decoder={decoder}: must be one of {', '.join(DECODERS)}")
    if decoder == "torchcodec":
        _import_torchcodec()


def _decode_with_pyav(
    data: bytes, moments: Sequence[float], clip: UInt8[np.ndarray, "T H W 3"]
) -> None:
    with opened(data) as (container, stream):
        cover = Cover(clip)
        last = None
        for i, frame in enumerate(on_show(container, stream, moments)):
            if frame is last:
                clip[i] = clip[i - 1]
            else:
                cover.put(frame, i)
            last = frame


def _decode_with_torchcodec(
    data: bytes, moments: Sequence[float], clip: UInt8[np.ndarray, "T H W 3"]
) -> None:
    decoders = _import_torchcodec()
    with opened(data) as (_, stream):
        index, tick = stream.index, float(stream.time_base or 1)
    try:
        video = decoders.VideoDecoder(
            data, stream_index=index, dimension_order="NHWC", num_ffmpeg_threads=1
        )
        first, end = video.metadata.begin_stream_seconds, video.metadata.end_stream_seconds
        # As in on_show; and what lies behind the end is refused instead of held.
        seconds = [min(first + moment + 0.5 * tick, end - 0.5 * tick) for moment in moments]
        images = video.get_frames_played_at(seconds=seconds).data.numpy()
    except (RuntimeError, IndexError, ValueError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreadableVideo(f"video cannot be read: {cause}") from error
    if images.shape == clip.shape:
        clip[:] = images
        return
    cover = Cover(clip)
    for i, image in enumerate(images):
        cover.put(VideoFrame.from_ndarray(image, format="rgb24"), i)


def _import_torchcodec() -> Any:
    try:
        from torchcodec import decoders  # pyright: ignore[reportMissingImports]
    # Its libraries are loaded at import; where FFmpeg is missing that is a RuntimeError.
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            "decoder=torchcodec is not installed; "
            "pip install 'hstvg[torchcodec]' or use decoder=pyav"
        ) from error
    return decoders


class Cover:
    """Puts frames into a clip: scaled to cover it, the rest cut off evenly."""

    def __init__(self, clip: UInt8[np.ndarray, "T H W 3"]) -> None:
        self._clip = clip
        # One scaler for all, on this thread: making one per frame costs more than decoding a small
        # frame, and handing a frame to the scaler's threads costs sixty times more than scaling it.
        self._reformatter = VideoReformatter()

    def put(self, frame: VideoFrame, i: int) -> None:
        height, width = self._clip.shape[1:3]
        grow = max(width / frame.width, height / frame.height)
        across, down = (
            max(width, round(frame.width * grow)),
            max(height, round(frame.height * grow)),
        )
        check_limit("pixels a frame", across * down, MAX_PIXELS)
        image = self._reformatter.reformat(
            frame, width=across, height=down, format="rgb24", threads=1
        )
        left, top = (across - width) // 2, (down - height) // 2
        plane = image.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        part = rows[top : top + height, 3 * left : 3 * (left + width)]
        self._clip[i] = part.reshape(height, width, 3)


def on_show(
    container: InputContainer, stream: VideoStream, moments: Sequence[float]
) -> Iterator[VideoFrame]:
    """For each moment the latest frame at or before it; the last one is held at the end.

    Args:
        container: not yet read from.
        stream: of the frames.
        moments: seconds after the first frame, rising.
    """
    origin = stream.start_time or 0
    tick = float(stream.time_base or 1)
    # Half a tick of tolerance: a moment that equals a time stamp must not fall before it.
    wanted = [origin + moment / tick + 0.5 for moment in moments]
    if moments[0] > 0.0:
        container.seek(origin + int(moments[0] / tick), stream=stream, backward=True)
    packets: Iterable[Packet | None] = container.demux(stream)
    if not stream.codec_context.has_b_frames:
        packets = _needed(packets, wanted)
    held, shown = None, 0
    for frame in _decoded(stream, packets):
        now = frame.pts or 0
        while held is not None and shown < len(wanted) and wanted[shown] < now:
            yield held
            shown += 1
        if shown == len(wanted):
            return
        held = frame
    if held is None:
        raise UnreadableVideo(f"it holds no frame at {moments[0]:.3f} s")
    yield from [held] * (len(wanted) - shown)


def _decoded(stream: VideoStream, packets: Iterable[Packet | None]) -> Iterator[VideoFrame]:
    count = 0
    for packet in packets:
        for frame in stream.decode(packet):
            count += 1
            check_limit(TOO_FAR, count, MAX_WINDOW_FRAMES)
            yield frame


def _needed(packets: Iterable[Packet], wanted: Sequence[float]) -> Iterator[Packet | None]:
    """Packets of frames that are shown or lead to one, and None at the end.

    Exact where frames are stored in the order of their time stamps; where they are not, everything
    is let through.
    """
    group: list[Packet] = []
    first = True
    for packet in packets:
        if not packet.size:
            break  # The demuxer's own mark of the end.
        if packet.pts is None or packet.pts != packet.dts:
            yield from [*group, packet]
            group, first = [], False
            continue
        if packet.is_keyframe and group:
            yield from _head(group, wanted, until=packet.pts, first=first)
            group, first = [], False
        if packet.pts > wanted[-1] and (group or not first):
            break
        group.append(packet)
    yield from _head(group, wanted, until=np.inf, first=first)
    yield None


def _head(
    group: Sequence[Packet], wanted: Sequence[float], *, until: float, first: bool
) -> list[Packet]:
    """Packets of a group up to the last one on show at a wanted moment before `until`."""
    last = max((moment for moment in wanted if moment < until), default=-np.inf)
    head = [packet for packet in group if (packet.pts or 0) <= last]
    check_limit(TOO_FAR, len(head), MAX_WINDOW_FRAMES)
    # Moments before the first frame show the first frame.
    return head or list(group[:1] if first else ())
