"""Layouts of scenes, worked by hand and held against what the renderer draws."""

import numpy as np
import pytest

from hstvg.data.shapes import render, sample_scene
from hstvg.scene.layout import LABELS, NOTHING, middles, places
from hstvg.scene.syntax import MAX_OBJECTS, Keyframe, Scene, SceneObject

BOX = (0.25, 0.5, 0.5, 0.75)


def thing(*frames, number=0, **changes):
    """A red circle that is at (t, box) each."""
    keyframes = tuple(Keyframe(t=t, box=box) for t, box in frames)
    looks = {"colour": "red", "shape": "circle", "motion": "still"}
    return SceneObject(id=number, keyframes=keyframes, **{**looks, **changes})


def still(box=BOX, **changes):
    return thing((0.0, box), (1.0, box), **changes)


def boxes_of(scene, *times_s, **how):
    return places(scene, np.array(times_s, dtype=float), **how).boxes


def test_what_stands_still_is_where_its_keyframes_say():
    found = places(Scene(objects=(still(),)), np.array([0.0, 0.7, 2.0]))
    assert np.allclose(found.boxes[0], [BOX] * 3)
    assert [LABELS[n] for n in found.labels if n != NOTHING] == ["red circle"]
    assert not found.boxes[1:].any()


def test_what_moves_is_between_its_keyframes_and_stays_at_the_last():
    frames = ((0.0, (0.0, 0.0, 0.2, 0.2)), (0.5, (0.4, 0.0, 0.6, 0.2)), (1.0, (0.4, 0.8, 0.6, 1.0)))
    scene = Scene(objects=(thing(*frames),), duration_s=2.0)
    want = [[0.1, 0.0, 0.3, 0.2], [0.4, 0.0, 0.6, 0.2], [0.4, 0.4, 0.6, 0.6], [0.4, 0.8, 0.6, 1.0]]
    assert np.allclose(boxes_of(scene, 0.25, 1.0, 1.5, 9.0)[0], want)


@pytest.mark.parametrize(
    ("camera", "shift"),
    [
        ("left", (0.1, 0.0, 0.1, 0.0)),
        ("right", (-0.1, 0.0, -0.1, 0.0)),
        ("up", (0.0, 0.1, 0.0, 0.1)),
        ("down", (0.0, -0.1, 0.0, -0.1)),
    ],
)
def test_a_pan_moves_boxes_the_other_way(camera, shift):
    scene = Scene(objects=(still(),), camera=camera, camera_speed=0.2)
    assert np.allclose(boxes_of(scene, 0.5)[0, 0], np.add(BOX, shift))


def test_boxes_may_leave_the_frame():
    scene = Scene(objects=(still(),), camera="right", camera_speed=0.5, duration_s=2.0)
    assert np.allclose(
        boxes_of(scene, 1.0, 2.0)[0], [[-0.25, 0.5, 0, 0.75], [-0.75, 0.5, -0.5, 0.75]]
    )


def test_shapes_keep_their_proportions_in_a_wide_frame():
    # Twice as wide as high: a quarter of the height is an eighth of the width, about the centre.
    wide = boxes_of(Scene(objects=(still(),)), 0.0, aspect=2.0)
    assert np.allclose(wide[0, 0], [0.3125, 0.5, 0.4375, 0.75])


def test_objects_stand_far_to_near():
    objects = (still(z_order=5), still(number=1, colour="blue", shape="square", z_order=2))
    found = places(Scene(objects=objects), np.zeros(1))
    assert [LABELS[n] for n in found.labels[:2]] == ["blue square", "red circle"]
    assert found.labels[2] == NOTHING


def test_without_a_scene_there_is_nothing():
    found = places(None, np.zeros(4))
    assert found.boxes.shape == (MAX_OBJECTS, 4, 4)
    assert not found.boxes.any()
    assert (found.labels == NOTHING).all()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 48), (48, 32)])
def test_places_are_where_the_renderer_draws(height, width):
    for seed in range(40):
        scene = sample_scene(seed, camera_fraction=0.5)
        clip = render(scene, num_frames=7, fps=5.0, height=height, width=width, start_s=0.3)
        # As a shard holds it: the layout needs no more than what is written of a scene.
        again = Scene.model_validate(scene.model_dump(mode="json"))
        boxes = boxes_of(again, *(0.3 + np.arange(7) / 5), aspect=width / height)
        # Objects are drawn in the order in which they are written.
        assert np.allclose(boxes[: len(scene.objects)], clip.boxes.transpose(1, 0, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "latent", "want"),
    [
        (8, 4, [0.5, 2.5, 4.5, 6.5]),
        (8, 8, list(range(8))),
        (8, 2, [1.5, 5.5]),
        (9, 3, [0.0, 2.5, 6.5]),
        (9, 9, list(range(9))),
        (1, 1, [0.0]),
    ],
)
def test_the_middles_of_latent_frames(frames, latent, want):
    assert middles(frames, latent).tolist() == want


@pytest.mark.parametrize(("frames", "latent"), [(8, 3), (8, 0), (3, 1), (1, 2), (8, 16), (9, 4)])
def test_frames_that_become_no_such_latent_are_refused(frames, latent):
    with pytest.raises(ValueError, match=f"{frames} frames do not become {latent}"):
        middles(frames, latent)
