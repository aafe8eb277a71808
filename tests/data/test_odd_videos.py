from io import BytesIO

import av
import numpy as np
import pytest
from footage import CORNERS, ODD, Bad

from hstvg.data.decode import decode_window
from hstvg.data.transcode import Form, transcode
from hstvg.data.video import UnreadableVideo, probe_video

FORM = Form(max_side=64)
GOOD = [name for name, (_, verdict) in ODD.items() if not isinstance(verdict, Bad)]
BAD = [name for name, (_, verdict) in ODD.items() if isinstance(verdict, Bad)]
LUMA = (0.299, 0.587, 0.114)


def corners_of(frame):
    height, width, _ = frame.shape
    inset = max(2, height // 12), max(2, width // 12)
    rows, columns = (inset[0], height - 1 - inset[0]), (inset[1], width - 1 - inset[1])
    return [frame[row, column].astype(float) for row in rows for column in columns]


def test_there_are_over_twenty_kinds():
    assert len(GOOD) > 20
    assert len(BAD) >= 6


@pytest.mark.parametrize("name", GOOD)
def test_odd_footage_becomes_a_plain_clip(odd_videos, name):
    path, verdict = odd_videos[name]
    data, info = transcode(path, FORM)
    assert (info.width, info.height) == (verdict.width, verdict.height)
    assert (info.num_frames, info.fps) == (verdict.num_frames, verdict.fps)
    assert info == probe_video(data)
    size = {"height": info.height, "width": info.width}
    clip = decode_window(data, start_s=0, num_frames=info.num_frames, fps=info.fps, **size)
    expected = np.array(CORNERS, float)
    if not verdict.colour:
        expected = np.repeat((expected @ LUMA)[:, None], 3, axis=1)
    for frame in (clip[0], clip[-1]):
        # Chroma of half the resolution, MPEG-2 and the palette of a GIF change colours a little.
        assert np.abs(np.array(corners_of(frame)) - expected).max() < 25


@pytest.mark.parametrize("name", GOOD)
def test_a_plain_clip_is_plain(odd_videos, name):
    path, _ = odd_videos[name]
    data, _ = transcode(path, FORM)
    assert transcode(path, FORM)[0] == data
    with av.open(BytesIO(data)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.sample_aspect_ratio in (None, 1)
        assert stream.start_time == 0
        for frame in container.decode(stream):
            assert (frame.rotation, frame.interlaced_frame) == (0, False)
            assert frame.color_range == av.video.reformatter.ColorRange.MPEG


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_in_one_line(odd_videos, name):
    path, verdict = odd_videos[name]
    for read in (probe_video, lambda path: transcode(path, FORM)):
        with pytest.raises(UnreadableVideo) as refused:
            read(path)
        assert str(refused.value).startswith(f"{name} cannot be read: ")
        assert verdict.reason in str(refused.value)
        assert "\n" not in str(refused.value)


def test_lines_of_two_moments_are_not_woven_together(odd_videos):
    data, _ = transcode(odd_videos["interlaced.mp4"][0], FORM)
    clip = decode_window(data, start_s=0, num_frames=12, fps=12, height=32, width=48)
    # The moving bar lies in the middle rows: neighbours there are as alike as two rows further on.
    rows = clip[2:-2, 13:19].astype(float).mean(axis=-1)
    comb = np.abs(2 * rows[:, 1:-1] - rows[:, :-2] - rows[:, 2:])
    with av.open(str(odd_videos["interlaced.mp4"][0])) as container:
        woven = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    rows = np.stack(woven)[2:-2, 13:19].astype(float).mean(axis=-1)
    woven_comb = np.abs(2 * rows[:, 1:-1] - rows[:, :-2] - rows[:, 2:])
    assert comb.max() < woven_comb.max() / 2
