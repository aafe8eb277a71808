"""Video bytes: encoding, probing, transcoding and decoding windows, all with PyAV.

Every failure to read is an `UnreadableVideo` with one line, so that ingestion can refuse a file and
go on. Times are seconds after the first frame of the stream.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from os import PathLike, fspath
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

Source = bytes | str | PathLike[str]
"""The content of a video file, or the path of one."""

LONGEST_GAP_S = 600
"""A longer pause between two frames is a broken time stamp, not a pause."""


class UnreadableVideo(ValueError):
    """Not a video, an empty one, or one that breaks off."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a full decode of a video found."""

    num_frames: int
    width: int
    height: int
    fps: float
    duration_s: float


def encode_video(
    frames: UInt8[np.ndarray, "T H W 3"],
    fps: float,
    *,
    codec: str = "libx264",
    crf: int = 18,
    gop: int = 16,
) -> bytes:
    """An MP4 file in yuv420p, playable while it downloads.

    Args:
        frames: RGB, with even height and width.
        fps: frames per second.
        codec: the FFmpeg name of an encoder that MP4 can hold.
        crf: quality of x264, 0 (lossless) to 51; 18 is hard to tell from the source.
        gop: at most this many frames from one key frame to the next; short makes seeking cheap.
    """
    _, height, width, _ = frames.shape
    if height % 2 or width % 2 or not frames.size:
        raise ValueError(f"yuv420p needs frames of even height and width, not {frames.shape[:3]}")
    reformatter = VideoReformatter()
    images = (
        reformatter.reformat(
            VideoFrame.from_ndarray(image, format="rgb24"), format="yuv420p", threads=1
        )
        for image in frames
    )
    return _mux(images, _as_rate(fps), (width, height), codec=codec, crf=crf, gop=gop)


def encode_gif(frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> bytes:
    """An endlessly repeating GIF with a palette of its own. GIF counts time in 1/100 s."""
    _, height, width, _ = frames.shape
    rate = _as_rate(fps)
    graph = _palette_graph(width, height, rate)
    for number, image in enumerate(frames):
        frame = VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = number, 1 / rate
        graph.push(frame)
    graph.push(None)
    target = BytesIO()
    with av.open(target, "w", format="gif") as container:
        stream = cast(VideoStream, container.add_stream("gif", rate=rate))
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        for _ in frames:
            container.mux(stream.encode(cast(VideoFrame, graph.pull())))
        container.mux(stream.encode(None))
    return target.getvalue()


def probe_video(source: Source) -> VideoInfo:
    """Decode everything and say what was there; the header of the file is not believed.

    Raises:
        UnreadableVideo: not a video, no frame, or clearly fewer frames than the file declares.
    """
    with _opened(source) as (container, stream):
        num_frames = sum(1 for _ in _decode_all(container, stream))
        fps = float(_rate_of(stream))
        return VideoInfo(
            num_frames=num_frames,
            width=stream.width,
            height=stream.height,
            fps=fps,
            duration_s=num_frames / fps,
        )


def transcode(source: Source, *, max_side: int) -> tuple[bytes, VideoInfo]:
    """The video as H.264 MP4 with short groups of pictures, at a constant rate, without sound.

    The longer side becomes at most `max_side` pixels, the aspect is kept, both sides become even.
    A variable rate becomes the average rate by repeating and dropping frames, so that motion keeps
    its true speed.

    Raises:
        UnreadableVideo: as `probe_video`.
    """
    with _opened(source) as (container, stream):
        rate = _rate_of(stream)
        shrink = min(1.0, max_side / max(stream.width, stream.height))
        width, height = (_even(side * shrink) for side in (stream.width, stream.height))
        reformatter = VideoReformatter()
        images = (
            reformatter.reformat(frame, width=width, height=height, format="yuv420p", threads=1)
            for frame in _at_constant_rate(_decode_all(container, stream), rate)
        )
        data = _mux(images, rate, (width, height))
    return data, probe_video(data)


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
    with _opened(data) as (container, stream):
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


@contextmanager
def _opened(source: Source) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream; whatever goes wrong inside is unreadable."""
    name = "video" if isinstance(source, bytes) else Path(source).name
    try:
        file = BytesIO(source) if isinstance(source, bytes) else fspath(source)
        with av.open(file, "r") as container:
            if not container.streams.video:
                raise UnreadableVideo("no video stream")
            stream = container.streams.video[0]
            # One thread: many clips are decoded side by side, and small frames do not split well.
            stream.codec_context.thread_count = 1
            yield container, stream
    except (FFmpegError, UnreadableVideo) as error:
        cause = error if isinstance(error, UnreadableVideo) else error.strerror
        raise UnreadableVideo(f"{name} cannot be read: {cause}") from error


def _decode_all(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Every frame, in order; refuses a stream that breaks off."""
    count, broken = 0, False
    for packet in container.demux(stream):
        broken |= packet.is_corrupt
        for frame in packet.decode():
            count += 1
            yield frame
    if count == 0:
        raise UnreadableVideo("it holds no frame")
    declared = _declared_frames(container, stream)
    if broken or count < declared:
        raise UnreadableVideo(f"it breaks off after {count} of about {max(count, declared)} frames")


def _declared_frames(container: InputContainer, stream: VideoStream) -> int:
    """Fewer frames than this are clearly fewer than the container promises."""
    if stream.frames:
        # Edit lists hide a few frames of whole files.
        return stream.frames - max(1, stream.frames // 50)
    if container.duration and not container.streams.audio:
        return int(0.75 * container.duration / av.time_base * _rate_of(stream))
    return 0


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


def _at_constant_rate(frames: Iterator[VideoFrame], rate: Fraction) -> Iterator[VideoFrame]:
    """Frames moved to the nearest slot of a constant rate; empty slots repeat the one before."""
    held, origin, shown = None, Fraction(0), 0
    for frame in frames:
        if frame.pts is None or frame.time_base is None:
            slot = shown + 1
        else:
            now = frame.pts * frame.time_base
            origin = now if held is None else origin
            # Rounding forgives containers that store time in milliseconds.
            slot = round((now - origin) * rate)
        if slot - shown > LONGEST_GAP_S * rate:
            raise UnreadableVideo(f"its time stamps jump by more than {LONGEST_GAP_S} s")
        while held is not None and shown < slot:
            yield held
            shown += 1
        held = frame
    if held is not None:
        yield held


def _mux(
    images: Iterator[VideoFrame],
    rate: Fraction,
    size: tuple[int, int],
    *,
    codec: str = "libx264",
    crf: int = 18,
    gop: int = 16,
) -> bytes:
    # A file, not memory: moving the index to the front (faststart) reopens what was written.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            stream = cast(VideoStream, container.add_stream(codec, rate=rate))
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            # Without mbtree the same frames give the same bytes, which x264 else does not promise.
            stream.options = {"crf": str(crf), "g": str(gop), "bf": "0", "mbtree": "0"}
            for number, image in enumerate(images):
                image.pts, image.time_base = number, 1 / rate
                # Left to itself, the encoder would copy key frames from the source's frame types.
                image.pict_type = 0
                container.mux(stream.encode(image))
            container.mux(stream.encode(None))
        return path.read_bytes()


def _palette_graph(width: int, height: int, rate: Fraction) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=width, height=height, format=VideoFormat("rgb24"), time_base=1 / rate
    )
    split, palette = graph.add("split"), graph.add("palettegen")
    paint, sink = graph.add("paletteuse", "dither=none"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(paint, 1, 0)
    palette.link_to(paint, 0, 1)
    paint.link_to(sink)
    graph.configure()
    return graph


def _as_rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _rate_of(stream: VideoStream) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise UnreadableVideo("it states no frame rate")
    return rate


def _even(side: float) -> int:
    # Down, so that no side exceeds what was asked for; the sum forgives rounding just below.
    return max(2, 2 * int(side / 2.0 + 1e-6))
