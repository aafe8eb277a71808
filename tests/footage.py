"""Odd and broken videos as people have them, tiny, made with PyAV when the tests run.

Every good one shows the same picture once it is upright: red in the corner at the top left, green
at the top right, blue at the bottom left, white at the bottom right, and a dark bar that moves.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from hstvg.data.video import encode_video

CORNERS = ((230, 30, 30), (30, 200, 30), (30, 30, 230), (225, 225, 225))
"""RGB at the top left, top right, bottom left and bottom right."""
FPS = 12
UNIT = 65536
QUARTER_TURN = (0, UNIT, 0, -UNIT, 0, 0, 0, 0, 1 << 30)
"""The display matrix of a phone held upright: shown a quarter turn clockwise."""


@dataclass(frozen=True, kw_only=True)
class Good:
    """What a video becomes when its longer side is to have at most 64 pixels."""

    width: int
    height: int
    num_frames: int = 12
    fps: float = FPS
    colour: bool = True
    """Whether the corners have colours; without, they have their brightness."""


@dataclass(frozen=True, kw_only=True)
class Bad:
    """Why a video is refused: words of the message."""

    reason: str


Verdict = Good | Bad
PLAIN = Good(width=48, height=32)


def picture(number: int, width: int = 48, height: int = 32) -> np.ndarray:
    """Frame `number` of what every good video shows, uint8 [H W 3]."""
    image = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    image[:top, :left], image[:top, left:] = CORNERS[0], CORNERS[1]
    image[top:, :left], image[top:, left:] = CORNERS[2], CORNERS[3]
    bar = width // 4 + number % max(width // 2, 1)
    image[3 * height // 8 : 5 * height // 8, bar : bar + max(width // 8, 1)] = 60
    return image


def pictures(width: int = 48, height: int = 32, num_frames: int = 12) -> list[np.ndarray]:
    return [picture(number, width, height) for number in range(num_frames)]


def write(
    path: Path,
    images: Sequence[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    ticks: Iterable[int] | None = None,
    clock: int = FPS,
    matrix: tuple[int, ...] | None = None,
    aspect: Fraction | None = None,
    container: str | None = None,
    **options: str,
) -> None:
    """A video of RGB images alone in its file; frame n is shown from ticks[n] / clock seconds on.

    Args:
        path: where to.
        images: uint8 [H W 3] each.
        codec: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the pixel format.
        ticks: times of the frames; in order if None.
        clock: ticks a second.
        matrix: FFmpeg's display matrix.
        aspect: of one pixel.
        container: FFmpeg's name of it; None follows the suffix.
        options: of the encoder.
    """
    with av.open(str(path), "w", format=container) as file:
        stream = add_stream(file, images, codec, pixels, clock=clock, **options)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.set_display_matrix(matrix)
        encode(file, stream, images, ticks=ticks, clock=clock)


def add_stream(
    file: Any, images: Sequence[np.ndarray], codec: str, pixels: str, *, clock: int, **options: str
) -> Any:
    stream = file.add_stream(codec, rate=clock)
    stream.height, stream.width = images[0].shape[:2]
    stream.pix_fmt = pixels
    stream.options = options
    return stream


def encode(
    file: Any,
    stream: Any,
    images: Sequence[np.ndarray],
    *,
    ticks: Iterable[int] | None = None,
    clock: int = FPS,
) -> None:
    for tick, image in zip(range(len(images)) if ticks is None else ticks, images, strict=True):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
        frame.pts, frame.time_base = tick, Fraction(1, clock)
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def add_sound(file: Any, seconds: float = 1.0) -> Any:
    stream = file.add_stream("aac", rate=16000, layout="mono")
    stream.codec_context.time_base = Fraction(1, 16000)
    return stream, np.zeros((1, int(16000 * seconds)), np.float32)


def encode_sound(file: Any, stream: Any, samples: np.ndarray) -> None:
    for start in range(0, samples.shape[1], 1024):
        part = np.ascontiguousarray(samples[:, start : start + 1024])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


# ---- one function for each kind that takes more than one call ------------------------------------


def turned(path: Path) -> None:
    write(path, [np.rot90(image).copy() for image in pictures(32, 48)], matrix=QUARTER_TURN)


def mirrored(path: Path) -> None:
    mirror = (-UNIT, 0, 0, 0, UNIT, 0, 0, 0, 1 << 30)
    write(path, [image[:, ::-1].copy() for image in pictures()], matrix=mirror)


def interlaced(path: Path) -> None:
    """Each frame weaves two moments together: its odd lines are half an interval later."""
    fields = pictures(num_frames=24)
    woven = []
    for early, late in zip(fields[::2], fields[1::2], strict=True):
        image = early.copy()
        image[1::2] = late[1::2]
        woven.append(image)
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    write(path, woven, pixels="yuv422p", **options)


def two_streams(path: Path) -> None:
    small, large = pictures(24, 16), pictures()
    with av.open(str(path), "w") as file:
        streams = [
            add_stream(file, images, "libx264", "yuv420p", clock=FPS) for images in (small, large)
        ]
        for stream, images in zip(streams, (small, large), strict=True):
            encode(file, stream, images)


def cover_first(path: Path) -> None:
    cover = [np.full((64, 64, 3), 128, np.uint8)]
    with av.open(str(path), "w") as file:
        art = add_stream(file, cover, "mjpeg", "yuvj420p", clock=FPS)
        art.disposition = Disposition.attached_pic
        film = add_stream(file, pictures(), "libx264", "yuv420p", clock=FPS)
        encode(file, art, cover)
        encode(file, film, pictures())


def with_sound(path: Path) -> None:
    with av.open(str(path), "w") as file:
        film = add_stream(file, pictures(), "libx264", "yuv420p", clock=FPS)
        sound, samples = add_sound(file)
        encode(file, film, pictures())
        encode_sound(file, sound, samples)


def sound_alone(path: Path) -> None:
    with av.open(str(path), "w") as file:
        encode_sound(file, *add_sound(file))


def cut_off(path: Path) -> None:
    data = encode_video(np.stack(pictures()), FPS)
    path.write_bytes(data[: len(data) * 2 // 3])


def header_alone(path: Path) -> None:
    write(path, pictures())
    data = path.read_bytes()
    # Where Matroska's first cluster begins.
    path.write_bytes(data[: data.index(b"\x1f\x43\xb6\x75")])


def huge(path: Path) -> None:
    """A GIF of a few kilobytes that says it is 20000 pixels wide and high."""
    write(path, pictures(), "gif", "rgb8", clock=10)
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 20000, 20000)
    path.write_bytes(bytes(data))


def resized_midway(path: Path) -> None:
    """One stream from two encoders, the second with frames half as large."""
    with av.open(str(path), "w") as file:
        stream = add_stream(file, pictures(), "libx264", "yuv420p", clock=FPS)
        encode(file, stream, pictures(num_frames=6))
        second = av.CodecContext.create("libx264", "w")
        second.width, second.height, second.pix_fmt = 24, 16, "yuv420p"
        second.time_base = Fraction(1, FPS)
        for number, image in enumerate(pictures(24, 16, 6)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = 6 + number, second.time_base
            for packet in second.encode(frame.reformat(format="yuv420p")):
                packet.stream = stream
                file.mux(packet)
        for packet in second.encode(None):
            packet.stream = stream
            file.mux(packet)


def damaged(path: Path) -> None:
    write(path, list(np.random.default_rng(0).integers(0, 255, (12, 48, 48, 3), dtype=np.uint8)))
    data = bytearray(path.read_bytes())
    middle = slice(len(data) // 3, len(data) // 2)
    data[middle] = bytes(byte ^ 0x55 for byte in data[middle])
    path.write_bytes(bytes(data))


def _of(*arguments: Any, images: Sequence[np.ndarray] | None = None, **options: Any) -> Callable:
    return lambda path: write(path, pictures() if images is None else images, *arguments, **options)


ODD: dict[str, tuple[Callable[[Path], object], Verdict]] = {
    "plain.mp4": (_of(), PLAIN),
    "turned.mov": (turned, Good(width=32, height=48)),
    "mirrored.mp4": (mirrored, PLAIN),
    "wide pixels.mp4": (_of(aspect=Fraction(4, 3)), Good(width=48, height=24)),
    "odd size.mp4": (_of("libx264", "yuv444p", images=pictures(35, 27)), Good(width=34, height=26)),
    "ten bits.mp4": (_of("libx264", "yuv420p10le"), PLAIN),
    "ten bits.mov": (_of("prores_ks", "yuv422p10le"), PLAIN),
    "full chroma.mp4": (_of("libx264", "yuv444p"), PLAIN),
    "rgb.mkv": (_of("libx264rgb", "rgb24"), PLAIN),
    "grey.mkv": (_of("ffv1", "gray"), Good(width=48, height=32, colour=False)),
    "alpha.mov": (_of("png", "rgba"), PLAIN),
    "variable rate.mkv": (
        _of(images=pictures(num_frames=6), ticks=[0, 2, 4, 12, 14, 16]),
        Good(width=48, height=32, num_frames=17),
    ),
    "interlaced.mp4": (interlaced, PLAIN),
    "vertical.mp4": (_of(images=pictures(32, 64)), Good(width=32, height=64)),
    "too large.mp4": (_of(images=pictures(128, 96)), Good(width=64, height=48)),
    "one frame.mp4": (_of(images=pictures(num_frames=1)), Good(width=48, height=32, num_frames=1)),
    "two streams.mkv": (two_streams, PLAIN),
    "cover first.mp4": (cover_first, PLAIN),
    "with sound.mp4": (with_sound, PLAIN),
    "size changes.ts": (resized_midway, PLAIN),
    # An elementary stream states no rate either; FFmpeg takes 25.
    "no time stamps.m4v": (_of(container="h264"), Good(width=48, height=32, fps=25.0)),
    "starts late.mp4": (_of(ticks=range(60, 72)), PLAIN),
    "starts early.mkv": (_of(ticks=range(-6, 6)), PLAIN),
    "full range.mov": (_of("mjpeg", "yuvj420p"), PLAIN),
    "vp9.webm": (_of("libvpx-vp9"), PLAIN),
    "av1.mp4": (
        _of("libsvtav1", images=pictures(64, 64), preset="12"),
        Good(width=64, height=64),
    ),
    "lossless.mkv": (_of("ffv1", "yuv422p"), PLAIN),
    "mjpeg.avi": (_of("mjpeg", "yuvj422p"), PLAIN),
    "animated.gif": (_of("gif", "rgb8", clock=10), Good(width=48, height=32, fps=10.0)),
    "broadcast.ts": (_of("mpeg2video", clock=25), Good(width=48, height=32, fps=25.0)),
    "sound alone.mp4": (sound_alone, Bad(reason="no video stream")),
    "cut off.mp4": (cut_off, Bad(reason="Invalid data found")),
    "empty.mp4": (Path.touch, Bad(reason="Invalid data found")),
    "text.mp4": (lambda path: path.write_text("no video\n" * 99), Bad(reason="Invalid data found")),
    "header alone.mkv": (header_alone, Bad(reason="it ends before its first frame")),
    "huge.gif": (huge, Bad(reason="pixels")),
    "damaged.mp4": (damaged, Bad(reason="Invalid data found")),
}
"""File name -> what makes it and what becomes of it."""


def make_odd_videos(folder: Path) -> dict[str, tuple[Path, Verdict]]:
    """Writes them all, which takes less than a second."""
    made = {}
    for name, (make, verdict) in ODD.items():
        make(folder / name)
        made[name] = (folder / name, verdict)
    return made
