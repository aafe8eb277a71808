import numpy as np
import pytest

from hstvg.data.optical_flow import estimate_flow, pool_flow
from hstvg.data.shapes import render, sample_scene

FPS = 10.0


def sliding_texture(step_x, step_y, size=64, num_frames=4):
    """A smooth texture that moves by (step_x, step_y) pixels a frame."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size].astype(float)
    waves = [(*rng.uniform(-0.4, 0.4, 2), rng.uniform(0, 6)) for _ in range(8)]
    frames = [
        sum(np.sin(a * (x - step_x * t) + b * (y - step_y * t) + p) for a, b, p in waves)
        for t in range(num_frames)
    ]
    grey = np.clip(128 + 25 * np.array(frames), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.parametrize("step", [(1.0, 0.0), (0.0, 2.0), (-1.5, 0.5)])
def test_a_known_translation_is_found(step):
    flow, confidence = estimate_flow(sliding_texture(*step), FPS)
    pixels = flow[:-1, :, 8:-8, 8:-8] * 64 / FPS
    assert np.abs(pixels.mean(axis=(0, 2, 3)) - step).max() < 0.05
    assert np.abs(pixels - np.array(step)[:, None, None]).mean() < 0.1
    assert confidence[:-1].mean() > 0.6


def test_nothing_moves_in_a_still_clip():
    flow, _ = estimate_flow(sliding_texture(0.0, 0.0), FPS)
    assert np.abs(flow).max() < 1e-4


def test_the_last_frame_and_flat_pictures_deserve_no_trust():
    flow, confidence = estimate_flow(sliding_texture(1.0, 0.0), FPS)
    assert not flow[-1].any()
    assert not confidence[-1].any()
    assert estimate_flow(np.full((3, 32, 32, 3), 40, np.uint8), FPS).confidence.max() < 1e-3


def test_a_cut_deserves_less_trust_than_a_motion():
    moving = sliding_texture(1.0, 0.0)
    cut = np.concatenate([moving[:1], np.flip(moving[:1], axis=(1, 2))])
    trust_in_cut = estimate_flow(cut, FPS).confidence[0].mean()
    assert trust_in_cut < 0.3 * estimate_flow(moving, FPS).confidence[0].mean()


def test_large_frames_are_reduced_and_units_stay():
    frames = sliding_texture(2.0, 0.0, size=128)
    flow, confidence = estimate_flow(frames, FPS)
    assert flow.shape == (4, 2, 64, 64)
    assert confidence.shape == (4, 1, 64, 64)
    assert flow[:-1, 0, 8:-8, 8:-8].mean() == pytest.approx(2.0 / 128 * FPS, rel=0.05)


def test_objects_of_the_shape_world_move_as_they_truly_do():
    wrong, none = [], []
    for seed in range(12):
        scene = sample_scene(seed, style_fraction=0.0)
        clip = render(scene, num_frames=8, fps=8.0, height=32, width=32)
        flow, confidence = estimate_flow(clip.pixels, 8.0)
        trust = confidence[:, 0] * (clip.owner >= 0)
        wrong.append((np.linalg.norm(flow - clip.flow, axis=1) * trust).sum() / trust.sum())
        none.append((np.linalg.norm(clip.flow, axis=1) * trust).sum() / trust.sum())
    assert np.mean(wrong) < 0.35 * np.mean(none)


@pytest.mark.parametrize("size", [(2, 2), (4, 16), (16, 5), (13, 7)])
def test_tiny_frames_have_a_flow_of_their_size(size):
    frames = np.random.default_rng(0).integers(0, 255, (3, *size, 3), dtype=np.uint8)
    flow, confidence = estimate_flow(frames, FPS)
    assert flow.shape == (3, 2, *size)
    assert confidence.shape == (3, 1, *size)
    assert np.isfinite(flow).all()


def test_what_appears_from_nowhere_deserves_no_trust():
    """The way back from where nothing came leads elsewhere."""
    frames = sliding_texture(1.0, 0.0)
    frames[1, 16:48, 16:48] = sliding_texture(0.0, 0.0)[0, 32:, 32:][::-1, ::-1]
    confidence = estimate_flow(frames[:2], FPS).confidence[0, 0]
    assert confidence[24:40, 24:40].mean() < 0.5 * confidence[:8].mean()


def test_pooling_weighs_by_confidence():
    flow = np.zeros((1, 2, 2, 4), np.float32)
    flow[0, 0] = [[1, 2, 9, 9], [3, 4, 9, 9]]
    confidence = np.zeros((1, 1, 2, 4), np.float32)
    confidence[0, 0] = [[1, 0, 0, 0], [0.5, 0, 0, 0]]
    pooled = pool_flow(flow, confidence, 2)
    assert pooled.flow[0, 0] == pytest.approx(np.array([[(1 + 1.5) / 1.5, 0.0]]))
    assert pooled.confidence[0, 0] == pytest.approx(np.array([[0.375, 0.0]]))
