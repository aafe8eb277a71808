import sys
from io import BytesIO
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch
from footage import pictures, write

from hstvg.data import decode, video
from hstvg.data.decode import decode_window
from hstvg.data.video import UnreadableVideo, encode_video


def flicker(num_frames, height=32, width=48, seed=0):
    """Frames that have nothing in common, so that a wrong one is seen."""
    cells = np.random.default_rng(seed).integers(0, 255, (num_frames, 4, 6, 3), dtype=np.uint8)
    return cells.repeat(height // 4, 1).repeat(width // 6, 2)


def every_frame(data):
    """Times after the first frame and RGB of the whole file, decoded in the plainest way."""
    with av.open(BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = sorted(container.decode(stream), key=lambda frame: frame.pts)
        times = [float((frame.pts - stream.start_time) * frame.time_base) for frame in frames]
        return np.array(times), np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


KINDS = {
    "as ingested.mp4": {"codec": "libx264", "g": "16", "bf": "0"},
    "reordered.mp4": {"codec": "libx264", "g": "16", "bf": "3"},
    "open groups.mkv": {"codec": "libx264", "g": "10", "bf": "3", "x264-params": "open-gop=1"},
    "one group.mp4": {"codec": "libx264", "g": "250", "bf": "0"},
    "short groups.mp4": {"codec": "libx264", "g": "3", "bf": "0"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": "8"},
    "mpeg2.mkv": {"codec": "mpeg2video", "g": "6", "bf": "2"},
    "intra.mkv": {"codec": "ffv1"},
    "variable.mkv": {"codec": "libx264", "g": "8", "bf": "0", "ticks": True},
}


@pytest.fixture(scope="module", params=KINDS)
def footage(request, tmp_path_factory):
    options = dict(KINDS[request.param])
    gaps = np.random.default_rng(1).integers(1, 4, 60)
    ticks = np.cumsum(gaps).tolist() if options.pop("ticks", False) else None
    path = tmp_path_factory.mktemp("windows") / request.param
    write(path, list(flicker(60)), options.pop("codec"), ticks=ticks, clock=25, **options)
    return path.read_bytes()


@pytest.mark.parametrize("fps", [25.0, 7.5, 6.25, 2.0, 0.5])
def test_a_window_is_what_decoding_everything_shows(footage, fps):
    times, frames = every_frame(footage)
    for start_s in (0.0, 0.04, 0.39, 0.7, 1.3, 2.1, 99.0):
        clip = decode_window(footage, start_s=start_s, num_frames=6, fps=fps, height=32, width=48)
        moments = start_s + np.arange(6) / fps
        on_show = np.maximum(np.searchsorted(times, moments + 1e-3, side="right") - 1, 0)
        assert np.array_equal(clip, frames[on_show])


def test_frames_behind_the_last_one_wanted_are_not_decoded(monkeypatch):
    data = encode_video(np.stack(pictures(num_frames=64)), 32.0, gop=16)
    monkeypatch.setattr(decode, "MAX_WINDOW_FRAMES", 4)
    window = {"num_frames": 4, "height": 32, "width": 48}
    clip = decode_window(data, start_s=0.0, fps=2.0, **window)
    assert np.array_equal(clip, every_frame(data)[1][::16])
    with pytest.raises(UnreadableVideo, match="frames to decode for one window are more than 4"):
        decode_window(data, start_s=0.0, fps=4.0, **window)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 96), (8, 48), (30, 14)])
def test_a_window_covers_whatever_size_is_asked_for(height, width):
    frames = np.zeros((2, 32, 48, 3), np.uint8)
    frames[:, 8:24, 12:36] = 200
    clip = decode_window(
        encode_video(frames, 2.0), start_s=0.0, num_frames=2, fps=2.0, height=height, width=width
    )
    assert clip.shape == (2, height, width, 3)
    assert np.abs(clip - clip[:, ::-1].astype(int)).max() < 16
    assert np.abs(clip - clip[:, :, ::-1].astype(int)).max() < 16
    assert clip[:, height // 2, width // 2].min() > 180


def test_a_row_of_odd_width_keeps_its_place():
    data = encode_video(np.stack(pictures(34, 32, 2)), 2.0)
    clip = decode_window(data, start_s=0.0, num_frames=1, fps=2.0, height=32, width=34)
    assert np.array_equal(clip, every_frame(data)[1][:1])


def test_a_large_member_is_refused(monkeypatch):
    monkeypatch.setattr(decode, "MAX_MEMBER_BYTES", 10)
    with pytest.raises(UnreadableVideo, match="11 bytes are more than 10"):
        decode_window(b"01234567890", start_s=0, num_frames=1, fps=1, height=8, width=8)


def test_a_window_of_large_frames_is_refused(monkeypatch):
    data = encode_video(flicker(2), 2.0)
    monkeypatch.setattr(video, "MAX_PIXELS", 32 * 48 - 1)
    with pytest.raises(UnreadableVideo, match=r"1536 pixels a frame are more than|over 1535"):
        decode_window(data, start_s=0, num_frames=1, fps=1, height=8, width=8)


# ---- torchcodec ----------------------------------------------------------------------------------

WINDOW = {"start_s": 0.3, "num_frames": 5, "fps": 6.0}


class FrameDecoder:
    """The part of torchcodec's VideoDecoder that is used, as its documentation describes it."""

    def __init__(self, source, *, stream_index, dimension_order, num_ffmpeg_threads):
        assert (stream_index, dimension_order, num_ffmpeg_threads) == (0, "NHWC", 1)
        self.times, self.frames = every_frame(source)
        self.end = self.times[-1] + self.times[1]
        # As for a file whose first frame has the time stamp of one second.
        self.metadata = SimpleNamespace(begin_stream_seconds=1.0, end_stream_seconds=1 + self.end)

    def get_frames_played_at(self, seconds):
        seconds = np.array(seconds) - 1.0
        if seconds.min() < 0 or seconds.max() >= self.end:
            raise RuntimeError("a time outside of the video\nand a second line")
        shown = np.searchsorted(self.times, seconds, side="right") - 1
        return SimpleNamespace(data=torch.from_numpy(self.frames[shown]))


@pytest.fixture
def torchcodec(monkeypatch):
    package = ModuleType("torchcodec")
    package.decoders = ModuleType("torchcodec.decoders")
    package.decoders.VideoDecoder = FrameDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", package.decoders)


@pytest.mark.parametrize("start_s", [0.0, 0.3, 9.0])
def test_both_decoders_show_the_same_frames(torchcodec, start_s):
    data = encode_video(flicker(20), 10.0)
    window = {**WINDOW, "start_s": start_s, "height": 32, "width": 48}
    ours = decode_window(data, **window)
    assert np.array_equal(ours, decode_window(data, **window, decoder="torchcodec"))


def test_both_decoders_cut_alike(torchcodec):
    data = encode_video(flicker(20), 10.0)
    window = {**WINDOW, "height": 16, "width": 16}
    ours = decode_window(data, **window).astype(int)
    theirs = decode_window(data, **window, decoder="torchcodec")
    # Chroma is scaled before the change of colours here, after it there.
    assert np.abs(ours - theirs).mean() < 12


def test_what_torchcodec_cannot_read_is_unreadable_in_one_line(torchcodec, monkeypatch):
    def fail(self, seconds):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(FrameDecoder, "get_frames_played_at", fail)
    with pytest.raises(UnreadableVideo, match=r"^video cannot be read: no$"):
        decode_window(
            encode_video(flicker(4), 4.0), **WINDOW, height=8, width=8, decoder="torchcodec"
        )


def test_a_missing_torchcodec_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(ValueError, match="decoder=torchcodec is not installed") as refused:
        decode_window(b"", **WINDOW, height=8, width=8, decoder="torchcodec")
    assert "pip install 'hstvg[torchcodec]' or use decoder=pyav" in str(refused.value)
    assert not isinstance(refused.value, UnreadableVideo)


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="decoder=opencv: must be one of pyav, torchcodec"):
        decode_window(b"", **WINDOW, height=8, width=8, decoder="opencv")
