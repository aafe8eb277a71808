"""The styles of the shape world: transforms of finished pictures, the same in every frame."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hstvg.scene.syntax import Style

Stylist = Callable[[np.ndarray, int], np.ndarray]
"""Image-space transform: pixels [T, H, W, 3] in [0, 1] and the seed of the scene to pixels."""


def _stripes(image: np.ndarray, seed: int) -> np.ndarray:
    height, width = image.shape[1:3]
    turn = (np.arange(height)[:, None] + np.arange(width)) / width * 6.0
    return image * np.where(turn % 1.0 < 0.5, 1.0, 0.4).astype(np.float32)[..., None]


def _blur(image: np.ndarray, seed: int) -> np.ndarray:
    reach = max(1, image.shape[2] // 24)
    for axis in (1, 2, 1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (reach + 1, reach)
        total = np.pad(image, pad, mode="edge").cumsum(axis=axis)
        window, length = 2 * reach + 1, image.shape[axis]
        low, high = (np.arange(length) + shift for shift in (0, window))
        image = (total.take(high, axis) - total.take(low, axis)) / window
    return image


def _grain(image: np.ndarray, seed: int) -> np.ndarray:
    # The same grain in every frame, as dirt on a lens, so that windows of a clip agree.
    grain = np.random.default_rng([seed, 2]).normal(0.0, 0.12, image.shape[1:])
    return image + grain.astype(np.float32)


def _tint(gain: Sequence[float], lift: Sequence[float]) -> Stylist:
    return lambda image, seed: image * np.array(gain, np.float32) + np.array(lift, np.float32)


STYLISTS: Mapping[Style, Stylist] = {
    "plain": lambda image, seed: image,
    "stripes": _stripes,
    "blur": _blur,
    # The root first, so that the dark background keeps bands.
    "posterise": lambda image, seed: np.rint(4.0 * np.sqrt(image)) / 4.0,
    "noise": _grain,
    "invert": lambda image, seed: 1.0 - image,
    "warm": _tint((0.85, 0.7, 0.4), (0.15, 0.07, 0.0)),
    "cool": _tint((0.4, 0.7, 0.85), (0.0, 0.07, 0.15)),
}
