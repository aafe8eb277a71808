import numpy as np
import pytest

from hstvg.data.optical_flow import estimate_flow
from hstvg.data.shapes import render, sample_scene
from hstvg.metrics.coherence import Coherence
from hstvg.metrics.flow_consistency import FlowConsistency
from hstvg.scene.grammar import write_caption
from hstvg.types import Metric

SIZE = {"num_frames": 16, "fps": 8.0, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def world():
    scenes = [
        sample_scene(seed, style_fraction=0.0, max_shapes=1, camera_fraction=0.0)
        for seed in range(24)
    ]
    return [render(scene, **SIZE).pixels for scene in scenes], [write_caption(s) for s in scenes]


def measure(metric, clips, captions=()):
    fields = [estimate_flow(clip, 8.0) for clip in clips]
    found = metric.empty().update(
        clips=clips,
        flows=[field.flow for field in fields],
        trusts=[field.confidence for field in fields],
        captions=captions,
        fps=8.0,
    )
    assert isinstance(found, Metric)
    return {name: estimate.value for name, estimate in found.compute().items()}


def moved_by_hand():
    """A ramp of 10 levels per pixel that moves right by a pixel a frame, told so exactly."""
    x = np.arange(16)
    ramp = np.stack([np.clip(10 * (x - t), 0, 150) for t in range(3)]).astype(np.uint8)
    clip = np.repeat(ramp[:, None, :, None], 8, axis=1).repeat(3, axis=3)
    flow = np.zeros((3, 2, 8, 16), np.float32)
    flow[:, 0] = 8.0 / 16
    return clip, flow, np.ones((3, 1, 8, 16), np.float32)


def test_motion_that_is_known_leaves_no_residual():
    clip, flow, trust = moved_by_hand()
    trust[..., -1] = 0  # leaves the frame
    found = Coherence.empty().update(clips=[clip], flows=[flow], trusts=[trust], fps=8.0).compute()
    assert found["residual"].value == pytest.approx(0, abs=1e-3)
    stuck = Coherence.empty().update(clips=[clip], flows=[0 * flow], trusts=[trust], fps=8.0)
    assert stuck.compute()["residual"].value > 5
    assert stuck.compute()["flicker"].value > 5


def test_a_frozen_clip_does_not_change_and_noise_does(world):
    clips, _ = world
    frozen = [np.repeat(clip[:1], len(clip), axis=0) for clip in clips]
    assert measure(Coherence, frozen)["residual"] == 0
    real = measure(Coherence, clips)
    rng = np.random.default_rng(0)
    shaken = [
        np.clip(clip + rng.normal(0, 8, (len(clip), 1, 1, 3)), 0, 255).astype(np.uint8)
        for clip in clips
    ]
    noisy = measure(Coherence, shaken)
    assert noisy["flicker"] > real["flicker"] + 3
    assert noisy["residual"] > real["residual"] + 1


def test_real_clips_move_as_told_and_others_do_not(world):
    clips, captions = world
    real = measure(FlowConsistency, clips, captions)["epe"]
    frozen = measure(
        FlowConsistency, [np.repeat(clip[:1], len(clip), axis=0) for clip in clips], captions
    )["epe"]
    backwards = measure(FlowConsistency, [clip[::-1].copy() for clip in clips], captions)["epe"]
    assert real < 0.6 * frozen
    assert frozen < backwards


def test_merging_is_measuring_the_union(world):
    clips, captions = world
    fields = [estimate_flow(clip, 8.0) for clip in clips]

    def of(rows):
        return {
            "clips": clips[rows],
            "flows": [field.flow for field in fields[rows]],
            "trusts": [field.confidence for field in fields[rows]],
            "captions": captions[rows],
            "fps": 8.0,
        }

    for metric in (Coherence, FlowConsistency):
        first, second = slice(0, 5), slice(5, None)
        whole = metric.empty().update(**of(slice(None)))
        parts = metric.empty().update(**of(first)).merge(metric.empty().update(**of(second)))
        assert parts.compute() == whole.compute()
        assert metric.empty().compute() == {}
