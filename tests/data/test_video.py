from io import BytesIO

import av
import numpy as np
import pytest

from hstvg.data.decode import decode_window
from hstvg.data.shapes import render, sample_scene
from hstvg.data.transcode import Form, transcode
from hstvg.data.video import UnreadableVideo, encode_gif, encode_video, probe_video

STEP = 5


def counting_frames(num_frames, height=32, width=32):
    """Frame n has brightness STEP * n everywhere."""
    levels = np.arange(num_frames, dtype=np.uint8) * STEP
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def numbers_of(frames):
    return np.rint(frames.mean(axis=(1, 2, 3)) / STEP).astype(int).tolist()


def psnr(ours, theirs):
    return 10 * np.log10(255**2 / np.mean((ours.astype(float) - theirs) ** 2))


@pytest.fixture(scope="module")
def shapes():
    return render(sample_scene(1), num_frames=16, fps=8.0, height=48, width=64).pixels


@pytest.fixture(scope="module")
def counting():
    return encode_video(counting_frames(50), 25.0)


def test_what_is_encoded_comes_back(shapes):
    data = encode_video(shapes, 8.0)
    clip = decode_window(data, start_s=0.0, num_frames=16, fps=8.0, height=48, width=64)
    assert psnr(clip, shapes) > 36


def test_probe_counts_what_is_there(shapes):
    info = probe_video(encode_video(shapes, 8.0))
    assert (info.num_frames, info.height, info.width) == (16, 48, 64)
    assert (info.fps, info.duration_s) == (8.0, 2.0)


def test_the_index_comes_first(shapes):
    data = encode_video(shapes, 8.0)
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("size", [(31, 32), (32, 31)])
def test_odd_sizes_are_refused_in_one_line(size):
    with pytest.raises(ValueError, match=r"even height and width, not \(4, 3") as refused:
        encode_video(np.zeros((4, *size, 3), np.uint8), 8.0)
    assert "\n" not in str(refused.value)


def test_a_gif_repeats_what_was_shown(shapes):
    data = encode_gif(shapes, 10.0)
    assert data.startswith(b"GIF89a")
    assert probe_video(data).num_frames == 16
    clip = decode_window(data, start_s=0.0, num_frames=16, fps=10.0, height=48, width=64)
    assert psnr(clip, shapes) > 28


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.7, 0.95, 0.999])
def test_a_video_that_breaks_off_is_refused(counting, kept):
    with pytest.raises(UnreadableVideo, match="cannot be read") as refused:
        probe_video(counting[: int(kept * len(counting))])
    assert "\n" not in str(refused.value)


def test_a_broken_matroska_file_is_refused(tmp_path):
    path = tmp_path / "clip.mkv"
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for image in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert probe_video(path).num_frames == 40
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableVideo, match=r"clip\.mkv cannot be read: it breaks off"):
        probe_video(path)


@pytest.mark.parametrize("source", [b"not a video at all" * 50, "no/such/file.mp4"])
def test_what_is_no_video_is_refused(source):
    with pytest.raises(UnreadableVideo, match="cannot be read"):
        probe_video(source)


@pytest.mark.parametrize(
    ("start_s", "fps", "expected"),
    [
        (0.0, 25.0, [0, 1, 2, 3, 4]),
        (0.4, 12.5, [10, 12, 14, 16, 18]),
        (1.0, 5.0, [25, 30, 35, 40, 45]),
        (0.41, 10.0, [10, 12, 15, 17, 20]),
        (0.0, 50.0, [0, 0, 1, 1, 2]),
    ],
)
def test_a_window_shows_the_frames_of_its_moments(counting, start_s, fps, expected):
    clip = decode_window(counting, start_s=start_s, num_frames=5, fps=fps, height=32, width=32)
    assert numbers_of(clip) == expected


@pytest.mark.parametrize(("start_s", "expected"), [(1.92, [48, 49, 49, 49]), (9.0, [49] * 4)])
def test_the_last_frame_is_held(counting, start_s, expected):
    clip = decode_window(counting, start_s=start_s, num_frames=4, fps=25.0, height=32, width=32)
    assert numbers_of(clip) == expected


def variable_rate(path, ticks):
    """A video whose frame n is shown from ticks[n] hundredths of a second on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=100)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for tick, image in zip(ticks, counting_frames(len(ticks)), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_variable_rate_is_read_by_time(tmp_path):
    variable_rate(tmp_path / "clip.mp4", [0, 10, 50, 60, 100])
    data = (tmp_path / "clip.mp4").read_bytes()
    clip = decode_window(data, start_s=0.0, num_frames=6, fps=5.0, height=32, width=32)
    assert numbers_of(clip) == [0, 1, 1, 3, 3, 4]


def test_a_window_covers_and_crops_the_centre():
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :, 16:48] = 200
    clip = decode_window(
        encode_video(frames, 4.0), start_s=0.0, num_frames=4, fps=4.0, height=16, width=16
    )
    assert clip.shape == (4, 16, 16, 3)
    assert clip[:, :, 1:-1].min() > 180


def test_transcoding_shrinks_and_keeps_aspect_rate_and_content(tmp_path, shapes):
    path = tmp_path / "source.mp4"
    path.write_bytes(encode_video(shapes, 8.0, gop=250))
    data, info = transcode(path, Form(max_side=35))
    assert (info.num_frames, info.width, info.height, info.fps) == (16, 34, 26, 8.0)
    same, info = transcode(path, Form(max_side=256))
    assert (info.width, info.height) == (64, 48)
    clip = decode_window(same, start_s=0.0, num_frames=16, fps=8.0, height=48, width=64)
    assert psnr(clip, shapes) > 33
    assert probe_video(data).num_frames == 16


def test_transcoding_a_variable_rate_keeps_the_time(tmp_path):
    variable_rate(tmp_path / "clip.mp4", [0, 20, 40, 120, 140, 160])
    data, info = transcode(tmp_path / "clip.mp4", Form(max_side=32))
    assert info.duration_s == pytest.approx(1.6, abs=0.4)
    clip = decode_window(data, start_s=0.0, num_frames=2, fps=1.0, height=32, width=32)
    assert numbers_of(clip) == [0, 2]


def test_transcoding_makes_key_frames_often():
    data, _ = transcode(encode_video(counting_frames(50), 25.0, gop=250), Form(max_side=32))
    with av.open(BytesIO(data)) as container:
        keys = [n for n, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert max(np.diff([*keys, 50])) <= 16


def test_transcoding_refuses_what_breaks_off(tmp_path, counting):
    path = tmp_path / "source.mp4"
    path.write_bytes(counting[: len(counting) * 2 // 3])
    with pytest.raises(UnreadableVideo, match=r"source\.mp4 cannot be read"):
        transcode(path, Form(max_side=32))
