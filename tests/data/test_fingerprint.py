from itertools import combinations

import numpy as np
import pytest
from footage import write

from hstvg.data.fingerprint import MOST_KEPT, SAME, distance, fingerprint
from hstvg.data.shapes import render, sample_scene
from hstvg.data.transcode import Form, transcode
from hstvg.data.video import UnreadableVideo, encode_video

FPS = 12.0
SEEDS = range(12)


def frames_of(seed, num_frames=24):
    return render(sample_scene(seed), num_frames=num_frames, fps=FPS, height=96, width=128).pixels


@pytest.fixture(scope="module")
def clips():
    return [frames_of(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def prints(clips):
    return [fingerprint(encode_video(clip, FPS)) for clip in clips]


def brighter(frames):
    return np.clip(frames.astype(int) + 10, 0, 255).astype(np.uint8)


CHANGES = {
    "strong compression": lambda frames: encode_video(frames, FPS, crf=38),
    "half the size": lambda frames: transcode(encode_video(frames, FPS), Form(max_side=64))[0],
    "another rate": lambda frames: transcode(encode_video(frames, FPS), Form(fps=30.0))[0],
    "a few pixels cut": lambda frames: encode_video(frames[:, 2:-2, 2:-2], FPS),
    "brighter": lambda frames: encode_video(brighter(frames), FPS),
    "darker": lambda frames: encode_video((frames * 0.92).astype(np.uint8), FPS),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_known_again(clips, prints, change):
    copies = [fingerprint(CHANGES[change](clip)) for clip in clips]
    assert max(distance(*pair) for pair in zip(prints, copies, strict=True)) <= SAME


def test_a_copy_in_another_codec_is_known_again(tmp_path, clips, prints):
    write(tmp_path / "copy.webm", list(clips[0]), "libvpx-vp9")
    assert distance(fingerprint(tmp_path / "copy.webm"), prints[0]) <= SAME


def test_different_clips_are_far_apart(prints):
    assert min(distance(*pair) for pair in combinations(prints, 2)) > 2 * SAME


def test_colours_alone_tell_clips_apart():
    def ball(colour):
        frames = np.full((12, 96, 128, 3), 110, np.uint8)
        frames[:, 30:70, 40:80] = colour
        return fingerprint(encode_video(frames, FPS))

    assert distance(ball((220, 40, 40)), ball((40, 220, 40))) > SAME


def test_a_clip_backwards_is_another_clip(clips, prints):
    moving = [fingerprint(encode_video(clip[::-1], FPS)) for clip in clips]
    assert np.median([distance(*pair) for pair in zip(prints, moving, strict=True)]) > SAME


def test_a_fingerprint_has_a_size_and_a_distance(prints):
    assert (prints[0].dtype, prints[0].shape) == (np.uint64, (12,))
    assert distance(prints[0], prints[0]) == 0
    assert distance(prints[0], ~prints[0]) == 768


def test_one_frame_is_enough(clips):
    still = fingerprint(encode_video(clips[0][:1], FPS))
    assert distance(still, fingerprint(encode_video(clips[0][:1].repeat(9, axis=0), FPS))) < 10


def test_a_long_video_is_thinned_out_and_known_again(monkeypatch, clips):
    data = encode_video(clips[2].repeat(8, axis=0), 8 * FPS)
    whole = fingerprint(data)
    monkeypatch.setattr("hstvg.data.fingerprint.MOST_KEPT", 50)
    assert MOST_KEPT > 192
    assert distance(whole, fingerprint(data)) <= SAME


def test_what_is_no_video_has_no_fingerprint():
    with pytest.raises(UnreadableVideo):
        fingerprint(b"no video")
