"""The shape world: scenes drawn from a seed, and clips rendered from scenes with exact truth.

Everything about a clip follows from its `Scene`, so flow, boxes and masks are known, not estimated.

Axes     T frames, O objects, H W pixels.
Widths   flow is in frame widths per second on both axes; boxes are fractions of the frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int8, UInt8

from hstvg.data.styles import STYLISTS
from hstvg.scene.grammar import (
    CAMERA_SPEED,
    CAMERAS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SPEEDS,
    STYLES,
    CaptionObject,
)
from hstvg.scene.layout import pan, track
from hstvg.scene.syntax import MAX_OBJECTS, Camera, Keyframe, Scene, SceneObject, Shape

Split = Literal["train", "val", "unseen"]
Word = TypeVar("Word")

RADIUS = (0.115, 0.17)
"""Half the side of an object's box. Below about 0.11 a shape cannot be told at 32 x 32 pixels."""
MARGIN = 0.01
"""Gap that objects keep to the border of the frame."""
PLACEMENTS_TRIED = 12
"""Draws of the start positions, of which the one with the least overlap is kept."""
UNSEEN_ONE_IN = 8
VAL_ONE_IN = 16


@dataclass(frozen=True, kw_only=True)
class Render:
    """A clip and all that is true of it."""

    pixels: UInt8[np.ndarray, "T H W 3"]
    flow: Float32[np.ndarray, "T 2 H W"]
    """Forward flow (x, y) of the pixel's owner, in frame widths per second."""
    boxes: Float32[np.ndarray, "T O 4"]
    """Tight x0, y0, x1, y1 on screen, fractions of the frame, not clipped to it."""
    owner: Int8[np.ndarray, "T H W"]
    """Index in `scene.objects` of the topmost object; -1 for the background."""


def sample_scene(
    seed: int,
    *,
    max_shapes: int = MAX_OBJECTS,
    camera_fraction: float = 0.2,
    style_fraction: float = 0.3,
    duration_s: float = 2.0,
) -> Scene:
    """A scene drawn from `seed` alone. Colours are distinct; every object stays inside the frame.

    Args:
        seed: the same seed and arguments always give the same scene.
        max_shapes: 1 to 3; the number of objects is uniform in 1..max_shapes.
        camera_fraction: share of scenes whose camera pans, 0 to 1.
        style_fraction: share of scenes in a style other than plain, 0 to 1.
        duration_s: seconds; in a long clip what would leave the frame is slowed down.
    """
    rng = np.random.default_rng(seed)
    pans, styled = rng.random() < camera_fraction, rng.random() < style_fraction
    camera: Camera = _pick(rng, list(CAMERAS)[1:]) if pans else "still"
    style = _pick(rng, STYLES[1:]) if styled else "plain"
    # A pan crosses at most 0.3 of the frame, so that there is a place from which to stay in view.
    camera_speed = min(CAMERA_SPEED, 0.3 / duration_s) if pans else 0.0
    drift = np.array(CAMERAS[camera]) * camera_speed * duration_s
    colours = rng.permutation(len(COLOURS))[: int(rng.integers(1, max_shapes + 1))]
    looks = [_draw_look(rng, int(index)) for index in colours]
    radii = [rng.uniform(*RADIUS) for _ in looks]
    placements = [
        np.stack(
            [
                _place(rng, look, radius, drift, duration_s)
                for look, radius in zip(looks, radii, strict=True)
            ]
        )
        for _ in range(PLACEMENTS_TRIED if len(looks) > 1 else 1)
    ]
    ends = min(placements, key=_worst_overlap)
    return Scene(
        objects=tuple(_as_object(n, look, ends[n]) for n, look in enumerate(looks)),
        camera=camera,
        camera_speed=camera_speed,
        style=style,
        duration_s=duration_s,
        seed=seed,
    )


def split_of(scene: Scene) -> Split:
    """The split of a scene, by hashes that no seed, machine or Python version changes.

    "unseen" holds every scene with one of the held-out combinations of colour, shape and motion
    (1 in 8 of them), so that such a combination never occurs in "train" or "val".
    """
    names = (f"unseen {thing.colour} {thing.shape} {thing.motion}" for thing in scene.objects)
    if any(_hash(name) % UNSEEN_ONE_IN == 0 for name in names):
        return "unseen"
    return "val" if _hash(scene.model_dump_json()) % VAL_ONE_IN == 0 else "train"


def render(
    scene: Scene, *, num_frames: int, fps: float, height: int, width: int, start_s: float = 0.0
) -> Render:
    """The clip of a scene: frame i shows the moment start_s + i / fps.

    After `scene.duration_s` everything stands still, the camera included. In a frame that is not
    square, shapes keep their proportions: they fill the shorter side of their box.
    """
    # One moment more than there are frames, for the flow of the last frame.
    times = np.minimum(start_s + np.arange(num_frames + 1) / fps, scene.duration_s)
    size = np.array([width, height])
    camera = pan(scene, times)
    to_widths = fps * np.array([1.0, height / width])
    image = _background(scene.seed, camera[:-1], height, width)
    owner = np.full((num_frames, height, width), -1, np.int8)
    flow = np.empty((num_frames, 2, height, width), np.float32)
    flow[:] = (-np.diff(camera, axis=0) * to_widths)[:, :, None, None]
    boxes = np.empty((num_frames, len(scene.objects), 4), np.float32)

    for n in sorted(range(len(scene.objects)), key=lambda n: scene.objects[n].z_order):
        thing = scene.objects[n]
        centre, radius = track(thing, times / scene.duration_s, size)
        centre -= camera
        cover = _cover(thing.shape, centre[:-1] * size, radius[:-1], height, width)[..., None]
        image += cover * (np.array(COLOURS[thing.colour], np.float32) / 255.0 - image)
        owned = cover[..., 0] >= 0.5
        owner[owned] = n
        motion = (np.diff(centre, axis=0) * to_widths).astype(np.float32)
        flow = np.where(owned[:, None], motion[:, :, None, None], flow)
        reach = radius[:-1, None] / size
        boxes[:, n] = np.concatenate([centre[:-1] - reach, centre[:-1] + reach], axis=1)

    styled = STYLISTS[scene.style](image, scene.seed)
    pixels = (styled.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return Render(pixels=pixels, flow=flow, boxes=boxes, owner=owner)


def _pick(rng: np.random.Generator, words: Sequence[Word]) -> Word:
    return words[int(rng.integers(len(words)))]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _draw_look(rng: np.random.Generator, colour: int) -> CaptionObject:
    motion = _pick(rng, list(MOTIONS))
    speed = _pick(rng, list(SPEEDS)) if motion != "still" else None
    return CaptionObject(
        colour=list(COLOURS)[colour], shape=_pick(rng, SHAPES), motion=motion, speed=speed
    )


def _place(
    rng: np.random.Generator,
    look: CaptionObject,
    radius: float,
    drift: Float[np.ndarray, "2"],
    duration_s: float,
) -> Float[np.ndarray, "2 4"]:
    """World boxes at the first and the last moment, inside the (drifting) frame at both."""
    direction = np.array(MOTIONS[look.motion])
    room = 1.0 - 2.0 * (radius + MARGIN)
    longest = [
        (room + np.sign(d) * shift) / abs(d)
        for d, shift in zip(direction, drift, strict=True)
        if d != 0.0
    ]
    way = direction * min([SPEEDS[look.speed] * duration_s, *longest])
    on_screen = way - drift
    low = radius + MARGIN + np.maximum(0.0, -on_screen)
    high = 1.0 - radius - MARGIN - np.maximum(0.0, on_screen)
    start = rng.uniform(low, np.maximum(low, high))
    centres = np.stack([start, start + way])
    return np.concatenate([centres - radius, centres + radius], axis=1)


def _worst_overlap(ends: Float[np.ndarray, "O 2 4"]) -> float:
    """Largest area that two boxes share at any of nine moments, in frame areas."""
    late = np.linspace(0.0, 1.0, 9)[:, None, None]
    boxes = ends[:, 0] * (1.0 - late) + ends[:, 1] * late
    low = np.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = np.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = np.maximum(high - low, 0.0).prod(axis=-1)
    pairs = np.triu_indices(len(ends), k=1)
    return float(shared[:, *pairs].max(initial=0.0))


def _as_object(number: int, look: CaptionObject, ends: Float[np.ndarray, "2 4"]) -> SceneObject:
    # Four decimals: a thousandth of a pixel at any size in use, and a scene a person can read.
    first, last = ((x0, y0, x1, y1) for x0, y0, x1, y1 in ends.round(4).tolist())
    return SceneObject(
        id=number,
        colour=look.colour,
        shape=look.shape,
        motion=look.motion,
        speed=look.speed,
        keyframes=(Keyframe(t=0.0, box=first), Keyframe(t=1.0, box=last)),
        z_order=number,
    )


def _cover(
    shape: Shape,
    centre: Float[np.ndarray, "T 2"],
    radius: Float[np.ndarray, "T"],
    height: int,
    width: int,
) -> Float32[np.ndarray, "T H W"]:
    """Share of each pixel that the shape covers, from the signed distance to its outline."""
    x = (np.arange(width) + 0.5 - centre[:, :1]).astype(np.float32)[:, None, :]
    y = (np.arange(height) + 0.5 - centre[:, 1:]).astype(np.float32)[:, :, None]
    r = radius.astype(np.float32)[:, None, None]
    if shape == "circle":
        distance = np.hypot(x, y) - r
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - r
    else:
        # Apex at (0, -r), base from (-r, r) to (r, r).
        distance = np.maximum((2.0 * np.abs(x) - y - r) / np.float32(5.0**0.5), y - r)
    return np.clip(0.5 - distance, 0.0, 1.0)


def _background(
    seed: int, camera: Float[np.ndarray, "T 2"], height: int, width: int
) -> Float32[np.ndarray, "T H W 3"]:
    """A dark texture fixed in the world: four plane waves and a tint, values below 0.17."""
    rng = np.random.default_rng([seed, 1])
    angle, phase = rng.uniform(0.0, 2.0 * np.pi, (2, 4))
    waves = 2.0 * np.pi / rng.uniform(0.3, 0.8, 4)
    x = ((np.arange(width) + 0.5) / width + camera[:, :1])[:, None, :, None]
    y = ((np.arange(height) + 0.5) / height + camera[:, 1:])[:, :, None, None]
    across, down = waves * np.cos(angle), waves * np.sin(angle)
    turns = (across * x + phase).astype(np.float32) + (down * y).astype(np.float32)
    level = 0.09 + 0.08 * np.clip(np.sin(turns).sum(axis=-1) / 2.0, -1.0, 1.0)
    return level[..., None] * rng.uniform(0.7, 1.0, 3).astype(np.float32)
