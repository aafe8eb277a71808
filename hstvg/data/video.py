"""Video bytes: opening them safely, probing and encoding, all with PyAV.

Whatever is opened here may be somebody else's: nothing a file says of itself is believed, every
cost is bounded, and every failure to read is an `UnreadableVideo` with one line, so that ingestion
can refuse a file and go on.
"""

import tempfile
from collections.abc import Iterable, Iterator
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
from av.stream import Disposition
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

Source = bytes | str | PathLike[str]
"""The content of a video file, or the path of one."""

CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,gif,yuv4mpegpipe,nut,ivf,"
    "h264,hevc,m4v,obu,av1,mjpeg,dv,rm,wtv,swf,3gp,apng,webp_anim,vc1,dirac"
)
"""What may be opened: FFmpeg's names of formats that hold their own pictures. Playlists, scripts
and lists of images are not among them, for those name other files to be read."""

MAX_FILE_BYTES = 64 * 2**30
"""A day of camera footage at 6 Mbit/s; a file that is larger is no clip and no film."""
MAX_PIXELS = 8192 * 4352
"""Per frame: level 6.2, the highest of H.264 and HEVC, which is all of 8K. One such frame is 53 MB
in yuv420p, and a decoder holds up to 17 of them."""
MAX_DURATION_S = 6 * 3600
"""Longer than any film. A still picture of a few bytes can claim to last for years."""
MAX_FRAMES = 1_000_000
"""Of one whole video, read or written: over nine hours at 30 per second."""
MAX_FPS = 240
"""Faster than this is the clock of a container, not a rate of pictures."""
BT601 = 6
"""FFmpeg's AVCOL_SPC_SMPTE170M, the matrix of all that is written here; players that are not told
guess another one for large frames."""


class UnreadableVideo(ValueError):
    """Not a video, an empty or damaged one, one that breaks off, or one beyond the limits."""


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
    return write_mp4(images, as_rate(fps), codec=codec, crf=crf, gop=gop)


def encode_gif(frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> bytes:
    """An endlessly repeating GIF with a palette of its own. GIF counts time in 1/100 s."""
    _, height, width, _ = frames.shape
    rate = as_rate(fps)
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
    with opened(source) as (container, stream):
        num_frames = sum(1 for _ in every_frame(container, stream))
        fps = float(rate_of(stream))
        return VideoInfo(
            num_frames=num_frames,
            width=stream.width,
            height=stream.height,
            fps=fps,
            duration_s=num_frames / fps,
        )


@contextmanager
def opened(
    source: Source, formats: str = CONTAINERS
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream; whatever goes wrong inside is unreadable.

    Args:
        formats: FFmpeg's names of those that may be opened, between commas.
    """
    name = "video" if isinstance(source, bytes) else Path(source).name
    try:
        check_limit("bytes", _size_of(source), MAX_FILE_BYTES)
        file = BytesIO(source) if isinstance(source, bytes) else fspath(source)
        options = {
            "format_whitelist": formats,
            "protocol_whitelist": "file",
            # The first frames are decoded while opening, before their size can be checked here.
            "max_pixels": str(MAX_PIXELS),
        }
        with av.open(file, "r", options=options) as container:
            stream = _best_stream(container)
            if not stream.width or not stream.height:
                raise UnreadableVideo(f"its frames have no size, or over {MAX_PIXELS} pixels")
            check_limit("pixels a frame", stream.width * stream.height, MAX_PIXELS)
            check_limit("seconds", (container.duration or 0) / av.time_base, MAX_DURATION_S)
            # One thread: many clips are decoded side by side, and small frames do not split well.
            stream.codec_context.thread_count = 1
            # The size may also change in mid-stream.
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, stream
    except (FFmpegError, UnreadableVideo) as error:
        cause = error if isinstance(error, UnreadableVideo) else error.strerror
        cause = "it ends before its first frame" if isinstance(error, EOFError) else cause
        raise UnreadableVideo(f"{name} cannot be read: {cause}") from error


def check_limit(what: str, found: float, limit: float) -> None:
    if found > limit:
        raise UnreadableVideo(f"{found:.0f} {what} are more than {limit}")


def every_frame(
    container: InputContainer, stream: VideoStream, *, from_start: bool = True
) -> Iterator[VideoFrame]:
    """Every frame from where the container stands; refuses a stream that is damaged or breaks off.

    Args:
        container: of the stream.
        stream: of the frames.
        from_start: False after a seek; then it is not known how many frames there should be.
    """
    count, broken, reached = 0, False, 0.0
    for packet in container.demux(stream):
        broken |= packet.is_corrupt
        for frame in packet.decode():
            count += 1
            check_limit("frames", count, MAX_FRAMES)
            if frame.is_corrupt and not from_start and count == 1:
                # What a seek lands on may lack the frames before it.
                count = 0
                continue
            if frame.is_corrupt and not broken:
                raise UnreadableVideo(f"frame {count} is damaged")
            reached = max(reached, frame.time or 0.0)
            yield frame
    if count == 0 and not from_start:
        return
    if count == 0:
        raise UnreadableVideo("it holds no frame")
    if stream.frames and from_start:
        # Edit lists hide a few frames of whole files.
        broken |= count < stream.frames - max(1, stream.frames // 50)
    elif container.duration and not container.streams.audio:
        duration_s = container.duration / av.time_base
        reached -= (container.start_time or 0) / av.time_base
        # Few frames alone may be a variable rate, and an early end alone a last frame that stays.
        early = reached + 1 / rate_of(stream) < 0.75 * duration_s
        broken |= early and count < 0.75 * duration_s * rate_of(stream)
    if broken:
        raise UnreadableVideo(f"it breaks off or has gaps: {count} frames")


def rate_of(stream: VideoStream) -> Fraction:
    """Frames per second, on average."""
    rate = stream.average_rate or stream.guessed_rate
    if not rate or rate < 0:
        raise UnreadableVideo("it states no frame rate")
    return min(rate, Fraction(MAX_FPS))


def as_rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def write_mp4(
    images: Iterable[VideoFrame],
    rate: Fraction,
    *,
    codec: str = "libx264",
    crf: int = 18,
    gop: int = 16,
) -> bytes:
    """An MP4 file of frames in yuv420p, all of one size, shown one after the other."""
    # A file, not memory: moving the index to the front (faststart) reopens what was written.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            stream = cast(VideoStream, container.add_stream(codec, rate=rate))
            stream.pix_fmt = "yuv420p"
            stream.codec_context.color_range = ColorRange.MPEG
            stream.codec_context.colorspace = BT601
            stream.codec_context.thread_count = 1
            # Without mbtree the same frames give the same bytes, which x264 else does not promise.
            # coder=0 is CAVLC: the same pictures for half of CABAC's decoding time, in a file an
            # eighth to a quarter larger. A clip is written once and read in every epoch.
            stream.options = {
                "crf": str(crf),
                "g": str(gop),
                "bf": "0",
                "mbtree": "0",
                "coder": "0",
            }
            for number, image in enumerate(images):
                if number == 0:
                    stream.width, stream.height = image.width, image.height
                image.pts, image.time_base = number, 1 / rate
                # Left to itself, the encoder would copy key frames from the source's frame types.
                image.pict_type = 0
                container.mux(stream.encode(image))
            container.mux(stream.encode(None))
        return path.read_bytes()


def _size_of(source: Source) -> int:
    if isinstance(source, bytes):
        return len(source)
    return Path(source).stat().st_size if Path(source).is_file() else 0


def _best_stream(container: InputContainer) -> VideoStream:
    """The largest stream of moving pictures: a cover or a thumbnail is not what was filmed."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & covers and stream.codec_context is not None
    ]
    if not streams:
        raise UnreadableVideo("no video stream")
    # A cover can also lie there as an ordinary stream of one frame.
    return max(streams, key=lambda stream: (stream.frames != 1, stream.width * stream.height))


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
