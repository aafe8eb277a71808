"""Optical flow of clips that come without truth: coarse-to-fine Lucas-Kanade in plain numpy.

For each pixel, the displacement d that makes the second frame, moved back by d, agree with the
first over a small window: the least squares solution of  Ix dx + Iy dy = -It, iterated from coarse
to fine. Fast and good enough to supervise motion on a coarse grid; it is no match for a learned
estimator, which is why every value comes with a confidence.

Axes     T frames, h w the (reduced) grid. P pairs of neighbouring frames.
Source   Lucas and Kanade 1981; Bouguet 2000 for the pyramid.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

MAX_SIDE = 64
"""Larger frames are reduced to at most this before the estimate."""
COARSEST_SIDE = 8
WINDOW_REACH = 4
"""The window is binomial, 2 * reach + 1 pixels wide."""
ITERATIONS = 3
FLOW_REACH = 3
"""Reach of the smoothing of the flow after each step: without it windows on the edge of an object
run away. On the shape world it halves the error."""
STEADY = 2e-5
"""Added to the diagonal of the normal equations: flat windows answer 0 instead of noise.
In (grey / pixel)^2 with grey in [0, 1]: a slope of about one level of 255 per pixel."""
RESIDUAL_SCALE = 0.02
"""Mean absolute grey difference after warping, at which confidence has dropped to 1/e."""


class FlowField(NamedTuple):
    """Forward flow and the trust it deserves."""

    flow: Float32[np.ndarray, "T 2 h w"]
    """(x, y) in frame widths per second; 0 at the last frame, which has no successor."""
    confidence: Float32[np.ndarray, "T 1 h w"]
    """0 to 1; 0 at the last frame and where the window is flat or does not match."""


def estimate_flow(
    frames: UInt8[np.ndarray, "T H W 3"], fps: float, *, max_side: int = MAX_SIDE
) -> FlowField:
    """Flow from each frame to the next on a grid of at most `max_side` cells a side.

    A frame whose size is no multiple of the reduction loses its last few rows or columns.
    """
    levels = _pyramid(_grey(frames, max_side))
    flow = np.zeros((len(frames) - 1, 2, *levels[-1].shape[1:]), np.float32)
    for level in reversed(levels):
        flow = _refine(level[:-1], level[1:], _enlarge(flow, level.shape[1:]))
    first, second = levels[0][:-1], levels[0][1:]
    texture = _texture(*_gradient_products(first))
    residual = _smooth(np.abs(_warp(second, flow) - first))
    trust = texture / (texture + STEADY) * np.exp(-residual / RESIDUAL_SCALE)
    to_widths = np.float32(fps / first.shape[2])
    return FlowField(flow=_until_last(flow * to_widths), confidence=_until_last(trust[:, None]))


def pool_flow(
    flow: Float32[np.ndarray, "T 2 h w"], confidence: Float32[np.ndarray, "T 1 h w"], stride: int
) -> FlowField:
    """Flow on a grid `stride` times coarser: means weighted by confidence, and mean confidence.

    A cell without any confidence has flow 0. Rows and columns that fill no cell are dropped.
    """
    weight = _pool(confidence, stride)
    total = _pool(flow * confidence, stride)
    # Where the weight is 0 the total is 0 too.
    return FlowField(flow=total / np.maximum(weight, np.float32(1e-12)), confidence=weight)


def _grey(frames: np.ndarray, max_side: int) -> Float32[np.ndarray, "T h w"]:
    """Mean of the channels in [0, 1], reduced. Not luma: there pure blue nearly vanishes."""
    stride = -(-max(frames.shape[1:3]) // max_side)
    grey = frames.mean(axis=-1, dtype=np.float32) / np.float32(255.0)
    return _smooth(_pool(grey, stride), reach=1)


def _pyramid(grey: np.ndarray) -> list[np.ndarray]:
    """Fine to coarse, each level half as wide."""
    levels = [grey]
    while min(levels[-1].shape[1:]) >= 2 * COARSEST_SIDE:
        levels.append(_pool(levels[-1], 2))
    return levels


def _refine(
    first: Float32[np.ndarray, "P h w"],
    second: Float32[np.ndarray, "P h w"],
    flow: Float32[np.ndarray, "P 2 h w"],
) -> Float32[np.ndarray, "P 2 h w"]:
    """Flow in pixels after a few Newton steps from a first guess."""
    down, across = _slopes(first)
    xx, xy, yy = _gradient_products(first)
    determinant = (xx + STEADY) * (yy + STEADY) - xy * xy
    for _ in range(ITERATIONS):
        change = _warp(second, flow) - first
        xt, yt = _smooth(across * change), _smooth(down * change)
        step_x = (xy * yt - (yy + STEADY) * xt) / determinant
        step_y = (xy * xt - (xx + STEADY) * yt) / determinant
        # Smoothing the sum, not the step, keeps neighbours together where windows are ambiguous.
        flow = _smooth(
            flow + np.clip(np.stack([step_x, step_y], axis=1), -1.0, 1.0), reach=FLOW_REACH
        )
    return flow


def _slopes(image: Float32[np.ndarray, "P h w"]) -> tuple[np.ndarray, np.ndarray]:
    down, across = np.gradient(image, axis=(1, 2))
    return down, across


def _gradient_products(image: Float32[np.ndarray, "P h w"]) -> tuple[np.ndarray, ...]:
    """Window means of Ix Ix, Ix Iy and Iy Iy."""
    down, across = _slopes(image)
    return tuple(_smooth(term) for term in (across * across, across * down, down * down))


def _texture(xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> np.ndarray:
    """Smaller eigenvalue of the normal equations: how well both directions are determined."""
    return np.maximum((xx + yy) / 2.0 - np.sqrt(((xx - yy) / 2.0) ** 2 + xy * xy), 0.0)


def _warp(
    image: Float32[np.ndarray, "P h w"], flow: Float32[np.ndarray, "P 2 h w"]
) -> Float32[np.ndarray, "P h w"]:
    """image at x + flow(x), bilinear, border repeated."""
    pairs, height, width = image.shape
    x = np.clip(np.arange(width, dtype=np.float32) + flow[:, 0], 0.0, width - 1.0)
    y = np.clip(np.arange(height, dtype=np.float32)[:, None] + flow[:, 1], 0.0, height - 1.0)
    left = np.minimum(x.astype(np.intp), width - 2)
    top = np.minimum(y.astype(np.intp), height - 2)
    x, y = (x - left).astype(np.float32), (y - top).astype(np.float32)
    corner = (np.arange(pairs)[:, None, None] * height + top) * width + left
    flat = image.ravel()
    above = flat[corner] * (1 - x) + flat[corner + 1] * x
    below = flat[corner + width] * (1 - x) + flat[corner + width + 1] * x
    return above * (1 - y) + below * y


def _smooth(image: np.ndarray, reach: int = WINDOW_REACH) -> np.ndarray:
    """Binomial window of 2 * reach + 1 pixels over the last two axes, border repeated."""
    for _ in range(reach):
        wide = np.concatenate([image[..., :1], image, image[..., -1:]], axis=-1)
        image = 0.25 * (wide[..., :-2] + wide[..., 2:]) + 0.5 * image
        tall = np.concatenate([image[..., :1, :], image, image[..., -1:, :]], axis=-2)
        image = 0.25 * (tall[..., :-2, :] + tall[..., 2:, :]) + 0.5 * image
    return image


def _enlarge(flow: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Flow of a level half as wide, on this level; a no-op on a level of the same size."""
    if flow.shape[2:] == size:
        return flow
    doubled = 2.0 * flow.repeat(2, axis=2).repeat(2, axis=3)
    pad = [
        (0, 0),
        (0, 0),
        *((0, want - have) for want, have in zip(size, doubled.shape[2:], strict=True)),
    ]
    return np.pad(doubled, pad, mode="edge").astype(np.float32)


def _pool(image: np.ndarray, stride: int) -> np.ndarray:
    """Block means over the last two axes."""
    *lead, height, width = image.shape
    rows, columns = height // stride, width // stride
    blocks = image[..., : rows * stride, : columns * stride]
    blocks = blocks.reshape(*lead, rows, stride, columns, stride)
    return blocks.mean(axis=(-3, -1), dtype=np.float32)


def _until_last(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.zeros_like(values[:1])]).astype(np.float32)
