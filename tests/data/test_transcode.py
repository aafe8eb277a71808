from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from footage import CORNERS, add_stream, encode, pictures, write

from hstvg.data import clock, transcode, video
from hstvg.data.decode import decode_window
from hstvg.data.transcode import Form
from hstvg.data.video import UnreadableVideo, encode_video, probe_video

STEP = 5


def counting(num_frames, height=32, width=48):
    """Frame n has brightness STEP * n everywhere."""
    levels = np.arange(num_frames, dtype=np.uint8) * STEP
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def made(source, form=None, **span):
    """Every frame of what becomes of a source."""
    data, info = transcode.transcode(source, form or Form(), **span)
    size = {"height": info.height, "width": info.width}
    window = {"start_s": 0.0, "num_frames": info.num_frames, "fps": info.fps}
    return decode_window(data, **window, **size)


def numbers(frames):
    return np.rint(frames.mean(axis=(1, 2, 3)) / STEP).astype(int).tolist()


@pytest.mark.parametrize(
    ("form", "complaint"),
    [
        ({"policy": "stretch"}, "policy=stretch: must be one of fit, crop, pad"),
        ({"policy": "fit", "height": 32}, "height and width belong to crop and pad"),
        ({"policy": "crop"}, "needs an even height and width, not None x None"),
        ({"policy": "pad", "height": 32, "width": 31}, "even height and width, not 32 x 31"),
        ({"policy": "crop", "height": 10**5, "width": 10**5}, "pixels"),
        ({"max_side": 0}, "pixels"),
        ({"fps": 0.0}, r"fps=0\.0: must be above 0"),
        ({"fps": 1000.0}, r"fps=1000\.0: must be above 0 and at most 240"),
        ({"gop": 0}, "gop=0"),
        ({"crf": 99}, "crf=99"),
    ],
)
def test_a_form_that_cannot_be_is_refused_in_one_line(form, complaint):
    with pytest.raises(ValueError, match=complaint) as refused:
        Form(**form)
    assert "\n" not in str(refused.value)


def test_cropping_covers_and_keeps_the_centre():
    source = encode_video(np.stack(pictures(96, 32)), 12.0)
    frames = made(source, Form(policy="crop", height=16, width=16))
    assert frames.shape[1:] == (16, 16, 3)
    for place, colour in zip(((1, 1), (1, 14), (14, 1), (14, 14)), CORNERS, strict=True):
        assert np.abs(frames[0][place].astype(int) - colour).max() < 25


def test_padding_fills_with_black_on_both_sides():
    source = encode_video(np.stack(pictures(48, 32)), 12.0)
    frames = made(source, Form(policy="pad", height=96, width=96))
    assert frames.shape[1:] == (96, 96, 3)
    assert frames[:, :14].max() < 20
    assert frames[:, -14:].max() < 20
    for place, colour in zip(((20, 4), (20, 91), (75, 4), (75, 91)), CORNERS, strict=True):
        assert np.abs(frames[0][place].astype(int) - colour).max() < 25


@pytest.mark.parametrize("policy", ["fit", "crop", "pad"])
def test_where_the_shape_changes_in_midstream_nothing_is_stretched(tmp_path, policy):
    path = tmp_path / "clip.ts"
    with av.open(str(path), "w") as file:
        stream = add_stream(file, pictures(48, 32), "mpeg2video", "yuv420p", clock=25)
        encode(file, stream, pictures(48, 32, 6), clock=25)
        second = av.CodecContext.create("mpeg2video", "w")
        second.width, second.height, second.pix_fmt = 32, 48, "yuv420p"
        second.time_base = stream.codec_context.time_base
        frames = [
            av.VideoFrame.from_ndarray(image, format="rgb24") for image in pictures(32, 48, 6)
        ]
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = 6 + number, second.time_base
            for packet in second.encode(frame.reformat(format="yuv420p")):
                packet.stream = stream
                file.mux(packet)
    form = Form(max_side=48) if policy == "fit" else Form(policy=policy, height=32, width=48)
    frames = made(path, form)
    assert frames.shape[1:] == (32, 48, 3)
    assert frames[0, :, 2].max() > 180
    # Standing pictures in a lying frame have bars beside them, unless they are cut.
    assert (frames[-1, :, 2].max() > 180) == (policy == "crop")


@pytest.mark.parametrize("aspect", [(4, 3), (3, 4)])
def test_square_pixels_come_from_fewer_not_from_more(tmp_path, aspect):
    write(tmp_path / "a.mp4", pictures(48, 32), aspect=Fraction(*aspect))
    frames = made(tmp_path / "a.mp4")
    assert frames.shape[1:3] == ((24, 48) if aspect == (4, 3) else (32, 36))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709])
def test_colours_stay_whatever_matrix_and_range_carried_them(tmp_path, matrix, full):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = add_stream(file, pictures(), "libx264", "yuv420p", clock=12)
        stream.codec_context.color_range = 2 if full else 1
        stream.codec_context.colorspace = 1 if matrix == Colorspace.ITU709 else 6
        for number, image in enumerate(pictures()):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=matrix,
                dst_color_range="JPEG" if full else "MPEG",
            )
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    frame = made(path)[0].astype(int)
    for place, colour in zip(((3, 3), (3, 44), (28, 3), (28, 44)), CORNERS, strict=True):
        assert np.abs(frame[place] - colour).max() < 12


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (None, list(range(12))),
        (24.0, [n // 2 for n in range(24)]),
        (6.0, [0, 2, 4, 6, 8, 10]),
        (4.0, [1, 4, 7, 10]),
    ],
)
def test_another_rate_keeps_the_speed(fps, expected):
    shown = numbers(made(encode_video(counting(12), 12.0), Form(fps=fps)))
    assert len(shown) == len(expected)
    # The frame on show may be the next one: slots are rounded to.
    assert np.abs(np.array(shown) - expected).max() <= 1
    assert np.all(np.diff(shown) >= 0)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ({"start_s": 1.0}, range(25, 50)),
        ({"end_s": 0.4}, range(10)),
        ({"start_s": 0.4, "end_s": 1.2}, range(10, 30)),
        ({"start_s": 0.401, "end_s": 1.199}, range(10, 30)),
        ({"start_s": 1.96, "end_s": 9.0}, [49]),
        ({"start_s": 0.6, "end_s": 0.6}, [15]),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "m4v", "avi"])
def test_a_part_is_cut_out_to_the_frame(tmp_path, span, expected, suffix):
    path = tmp_path / f"clip.{suffix}"
    raw = {"container": "h264"} if suffix == "m4v" else {}
    write(path, list(counting(50)), clock=25, g="20", **raw)
    assert numbers(made(path, **span)) == list(expected)


def test_nothing_is_no_part(tmp_path):
    with pytest.raises(UnreadableVideo, match=r"shows nothing from 3\.000 s on"):
        transcode.transcode(encode_video(counting(50), 25.0), Form(), start_s=3.0)


def test_a_clock_that_starts_anew_goes_on(tmp_path):
    """Two recordings joined byte by byte: the time stamps of the second are those of the first."""
    parts = []
    for number in range(2):
        part = tmp_path / f"{number}.flv"
        write(part, list(counting(50)[25 * number : 25 * number + 25]), "flv1", clock=25)
        parts.append(part.read_bytes())
    header = len(b"FLV\x01\x01\x00\x00\x00\x09\x00\x00\x00\x00")
    (tmp_path / "both.flv").write_bytes(parts[0] + parts[1][header:])
    shown = numbers(made(tmp_path / "both.flv"))
    assert shown == list(range(50))


def test_time_stamps_that_stand_still_do_not_stop_the_clock(tmp_path):
    write(tmp_path / "a.mkv", list(counting(5)), "ffv1", clock=1000, ticks=[0, 40, 41, 120, 160])
    assert len(made(tmp_path / "a.mkv", Form(fps=25.0))) == 5


def test_the_tick_of_a_clock_is_no_rate(tmp_path):
    ticks = [0, 33, 67, 99, 134, 165, 200]
    write(tmp_path / "a.webm", list(counting(7)), "libvpx-vp9", clock=1000, ticks=ticks)
    _, info = transcode.transcode(tmp_path / "a.webm", Form())
    assert (info.num_frames, info.fps) == (7, 30.0)


# ---- limits --------------------------------------------------------------------------------------


def refusal(source, *, read=lambda source: transcode.transcode(source, Form())):
    with pytest.raises(UnreadableVideo) as refused:
        read(source)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("read", [probe_video, lambda source: transcode.transcode(source, Form())])
@pytest.mark.parametrize(
    ("module", "name", "limit", "complaint"),
    [
        (video, "MAX_FILE_BYTES", 100, "bytes are more than 100"),
        (video, "MAX_PIXELS", 1535, "1535"),
        (video, "MAX_FRAMES", 11, "12 frames are more than 11"),
        (video, "MAX_DURATION_S", 1, "seconds are more than 1"),
    ],
)
def test_whatever_is_beyond_a_limit_is_refused(monkeypatch, module, name, limit, complaint, read):
    source = encode_video(counting(36), 12.0)
    monkeypatch.setattr(module, name, limit)
    assert complaint in refusal(source, read=read)


def test_frames_that_grow_in_midstream_are_refused(odd_videos, tmp_path, monkeypatch):
    path = tmp_path / "grows.h264"
    small, large = tmp_path / "a.h264", tmp_path / "b.h264"
    write(small, pictures(48, 32))
    write(large, pictures(64, 64))
    path.write_bytes(small.read_bytes() + large.read_bytes())
    assert made(path).shape[1:3] == (32, 48)
    monkeypatch.setattr(video, "MAX_PIXELS", 2000)
    refusal(path)
    refusal(path, read=probe_video)


def test_few_frames_that_claim_to_last_are_refused(tmp_path, monkeypatch):
    write(tmp_path / "a.mkv", pictures(num_frames=4), "ffv1", ticks=[0, 1, 700, 900], clock=1)
    assert "time stamps jump by more than 600 s" in refusal(tmp_path / "a.mkv")
    monkeypatch.setattr(clock, "LONGEST_GAP_S", 1000)
    monkeypatch.setattr(transcode, "MAX_FRAMES", 500)
    assert "frames are more than 500" in refusal(tmp_path / "a.mkv")


def test_a_playlist_is_no_video(tmp_path):
    """A list may name any file of the machine or the net."""
    write(tmp_path / "real.ts", pictures())
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.mp4").write_text(playlist)
    (tmp_path / "list.m3u8").write_text(playlist)
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile real.ts\n")
    for name in ("list.mp4", "list.m3u8", "concat.mp4"):
        assert name in refusal(tmp_path / name)
