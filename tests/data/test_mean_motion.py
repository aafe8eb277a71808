import numpy as np
import pytest
from footage import write

from hstvg.data import motion
from hstvg.data.motion import mean_motion
from hstvg.data.video import UnreadableVideo, encode_video

FPS = 12


def texture(height, width, seed=0):
    """Smooth noise, float [height width 3]."""
    rough = np.random.default_rng(seed).normal(0.0, 1.0, (height, width, 3))
    waves = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    smooth = np.fft.rfft2(rough, axes=(0, 1)) / np.maximum(waves, 0.01)[..., None]
    smooth = np.fft.irfft2(smooth, s=(height, width), axes=(0, 1))
    return 120.0 + 45.0 * smooth / smooth.std()


def pan(across, down, *, num_frames=18, height=64, width=96, noise=1.0):
    """A camera that moves by whole frames of `across` and `down` pixels."""
    world = texture(height + down * num_frames, width + across * num_frames)
    grain = np.random.default_rng(1)
    frames = [
        world[down * n : down * n + height, across * n : across * n + width]
        + grain.normal(0.0, noise, (height, width, 1))
        for n in range(num_frames)
    ]
    return np.clip(frames, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("across", "down"), [(1, 0), (2, 0), (0, 1), (0, 2), (2, 2)])
def test_a_pan_moves_as_fast_as_its_camera(across, down):
    speed = np.hypot(across, down) * FPS / 96
    assert mean_motion(encode_video(pan(across, down), FPS)) == pytest.approx(speed, rel=0.15)


@pytest.mark.parametrize(("noise", "most"), [(0.0, 0.005), (3.0, 0.01), (8.0, 0.03)])
def test_a_camera_at_rest_sees_little_move(noise, most):
    assert mean_motion(encode_video(pan(0, 0, noise=noise), FPS)) < most


def test_the_rate_of_frames_does_not_matter():
    frames = pan(1, 0, num_frames=36)
    fast, slow = mean_motion(encode_video(frames, 30.0)), mean_motion(encode_video(frames[::3], 10))
    assert fast == pytest.approx(slow, rel=0.1)


def test_where_nothing_can_be_followed_nothing_moves():
    assert mean_motion(encode_video(np.zeros((9, 32, 32, 3), np.uint8), FPS)) == 0.0
    assert mean_motion(encode_video(pan(1, 0, num_frames=1), FPS)) == 0.0


def test_a_long_video_costs_no_more(monkeypatch):
    compared = []
    whole = motion.estimate_flow
    monkeypatch.setattr(
        motion, "estimate_flow", lambda *inputs: compared.append(1) or whole(*inputs)
    )
    speeds = []
    for num_frames in (10, 40, 160):
        compared.clear()
        speeds.append(mean_motion(encode_video(pan(1, 0, num_frames=num_frames), 10.0)))
        assert min(8, num_frames - 1) <= len(compared) <= motion.MOST_PAIRS
    assert speeds == pytest.approx([speeds[0]] * 3, rel=0.1)


def test_a_variable_rate_is_no_motion(tmp_path):
    frames = list(pan(1, 0, num_frames=12))
    ticks = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
    still = [frames[0]] * 12
    write(tmp_path / "still.mkv", still, "ffv1", ticks=ticks)
    assert mean_motion(tmp_path / "still.mkv") == pytest.approx(0.0, abs=1e-3)


def test_what_is_no_video_has_no_motion():
    with pytest.raises(UnreadableVideo):
        mean_motion(b"no video")
