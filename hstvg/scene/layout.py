"""Layouts: what a scene shows where on screen, at any moments of it. Exact, nothing is estimated.

Read without torch, as by the tasks that read shards.

Screen    coordinates are fractions of the frame, x right, y down; what the camera pans past moves
          the other way.
Axes      O objects, always MAX_OBJECTS of them, far to near; t moments.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int8, Real

from hstvg.scene.grammar import CAMERAS, COLOURS, SHAPES
from hstvg.scene.syntax import MAX_OBJECTS, Scene, SceneObject

LABELS: tuple[str, ...] = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""All that an object can be, in the words of captions."""
NOTHING = -1
"""Instead of the number of a label."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """What is where; what there is comes before what there is not."""

    boxes: Float32[np.ndarray, "O t 4"]
    """Tight x0, y0, x1, y1 on screen, not clipped to the frame; 0 where there is no object."""
    labels: Int8[np.ndarray, "O"]
    """Numbers in LABELS; NOTHING where there is no object."""


def places(
    scene: Scene | None,
    times_s: Float[np.ndarray, "t"],
    *,
    aspect: float = 1.0,
    shown: float | None = None,
) -> Places:
    """Where the objects of a scene are at moments of it; nothing anywhere if there is none.

    Args:
        times_s: seconds after its beginning; after `scene.duration_s` everything stands still.
        aspect: width over height of the frame. Shapes keep their proportions in it: they fill the
            shorter side of the boxes of their keyframes.
        shown: the same of the screen, which shows as much of the middle of the frame as fits; None
            shows all of it.
    """
    boxes = np.zeros((MAX_OBJECTS, len(times_s), 4), np.float32)
    labels = np.full(MAX_OBJECTS, NOTHING, np.int8)
    if scene is None:
        return Places(boxes=boxes, labels=labels)
    times = np.minimum(times_s, scene.duration_s)
    camera = pan(scene, times)
    size, wider = np.array([aspect, 1.0]), (shown or aspect) / aspect
    seen = np.array([min(wider, 1.0), min(1.0 / wider, 1.0)])
    for n, thing in enumerate(sorted(scene.objects, key=lambda thing: thing.z_order)):
        centre, radius = track(thing, times / scene.duration_s, size)
        centre -= camera
        centre = (centre - 0.5) / seen + 0.5
        reach = radius[:, None] / size / seen
        boxes[n] = np.concatenate([centre - reach, centre + reach], axis=1)
        labels[n] = LABELS.index(f"{thing.colour} {thing.shape}")
    return Places(boxes=boxes, labels=labels)


def pan(scene: Scene, times_s: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T 2"]:
    """How far the camera has moved, in frame fractions."""
    return times_s[:, None] * scene.camera_speed * np.array(CAMERAS[scene.camera])


def track(
    thing: SceneObject, moments: Float[np.ndarray, "T"], size: Real[np.ndarray, "2"]
) -> tuple[Float[np.ndarray, "T 2"], Float[np.ndarray, "T"]]:
    """Centre (x, y) in world fractions and radius in units of `size`, at fractions of the duration.

    Args:
        size: width and height of the frame, in any unit.
    """
    known = [frame.t for frame in thing.keyframes]
    sides = np.array([frame.box for frame in thing.keyframes]).T
    x0, y0, x1, y1 = (np.interp(moments, known, side) for side in sides)
    radius = np.minimum((x1 - x0) * size[0], (y1 - y0) * size[1]) / 2.0
    return np.stack([(x0 + x1) / 2.0, (y0 + y1) / 2.0], axis=1), radius


def middles(num_frames: int, latent_frames: int) -> Float[np.ndarray, "t"]:
    """The middle of every latent frame, counted in frames of the clip from 0.

    Tokenizers join a power of two of frames; of an odd number of frames the first stays alone.

    Raises:
        ValueError: no such number of frames becomes so many.
    """
    alone = num_frames % 2
    groups = latent_frames - alone
    joined = (num_frames - alone) // max(groups, 1)
    if not 1 <= latent_frames <= num_frames or joined * groups != num_frames - alone:
        raise ValueError(f"{num_frames} frames do not become {latent_frames} of a latent")
    return np.concatenate(
        [np.zeros(alone), alone + joined * np.arange(groups) + (joined - 1) / 2.0]
    )
