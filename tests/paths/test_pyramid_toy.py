"""A Gaussian world, where the best velocity is a matrix and a whole climb is linear in its noise.

So the covariance of the samples is exact, without drawing any: that of a basis sent through.
"""

import pytest
import torch

from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.scales import Scale, pool, upsample

SIZE = Scale(4, 4, 4)
MERGES = {"time": 2, "space": 4, "cubic": 8}


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def as_matrix(operator, scale):
    """Rows are what the operator makes of each cell of a grid."""
    return operator(eye(scale.volume).view(-1, 1, *scale)).flatten(1).mT


def world():
    """Covariance of smooth data: it falls with the distance of cells."""
    cells = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in SIZE))
    return torch.exp(-torch.cdist(cells, cells) / 3)


def covariance_at(scale):
    D = as_matrix(lambda x: pool(x, scale), SIZE)
    return D @ world() @ D.mT


def best_velocity(flow, scales):
    """E[v | x] of the world at every level."""

    def velocity(x, tau, level):
        scale, t, s = scales[level], flow.ends[level], tau[0].item()
        identity = eye(scale.volume)
        A_rate, A, a = t * identity, s * t * identity, 0.0
        if level:
            coarse = scales[level - 1]
            a = flow.start_share(level, scale.volume // coarse.volume)
            UD = as_matrix(lambda x: upsample(pool(x, coarse), scale), scale)
            A_rate, A = A_rate - a * UD, A + (1 - s) * a * UD
        sigma, sigma_rate = (1 - s) * (1 - a) + s * (1 - t), a - t
        S = covariance_at(scale)
        gain = (A_rate @ S @ A.mT + sigma * sigma_rate * identity) @ torch.linalg.inv(
            A @ S @ A.mT + sigma**2 * identity
        )
        return (x.flatten(1) @ gain.mT).view_as(x)

    return velocity


def basis(scales):
    """One row per noise cell of all levels: all other noise is zero in it."""
    sizes = [scale.volume for scale in scales]
    parts = eye(sum(sizes)).split(sizes, dim=1)
    return [part.reshape(-1, 1, *scale) for part, scale in zip(parts, scales, strict=True)]


def error_of(samples):
    flat = samples.flatten(1)
    return ((flat.mT @ flat - world()).norm() / world().norm()).item()


def climb(flow, *, steps=30, solver="heun", **how):
    scales = flow.scales(SIZE)
    velocity = best_velocity(flow, scales)
    return flow.sample(velocity, scales, basis(scales), steps=steps, solver=solver, **how).finest


@pytest.mark.parametrize("boundaries", [(0.5, 1.0), (0.3, 0.7, 1.0)])
@pytest.mark.parametrize("pyramid", MERGES)
def test_samples_have_the_covariance_of_the_world(pyramid, boundaries):
    flow = PyramidFlow(boundaries=boundaries, pyramid=pyramid)
    scales = flow.scales(SIZE)
    assert scales[1].volume == MERGES[pyramid] * scales[0].volume
    assert error_of(climb(flow)) < 0.005


@pytest.mark.parametrize("pyramid", MERGES)
def test_plain_upsampling_does_not(pyramid, monkeypatch):
    flow = PyramidFlow(pyramid=pyramid)
    monkeypatch.setattr(flow, "jump", lambda x, level, scale, noise: upsample(x, scale))
    assert error_of(climb(flow)) > 0.3


@pytest.mark.parametrize("pyramid", MERGES)
def test_heun_errs_less_at_the_same_cost(pyramid):
    flow = PyramidFlow(pyramid=pyramid)
    heun, euler = climb(flow, steps=6), climb(flow, steps=12, solver="euler")
    assert error_of(heun) < 0.3 * error_of(euler)


@pytest.mark.parametrize("pyramid", MERGES)
def test_a_climb_from_a_clean_coarse_latent_has_it_too(pyramid):
    flow = PyramidFlow(pyramid=pyramid)
    scales = flow.scales(SIZE)
    coarse, noise = basis(scales)
    root = torch.linalg.cholesky(covariance_at(scales[0]))
    clean = (coarse.flatten(1) @ root.mT).view_as(coarse)
    assert error_of(climb(flow, first=1, start=flow.handoff(clean, 1, SIZE, noise))) < 0.005


@pytest.mark.parametrize("pyramid", MERGES)
def test_a_handoff_starts_where_a_jump_lands(pyramid):
    """And where training started: the same covariance, for all data of the world."""
    flow = PyramidFlow(pyramid=pyramid)
    scales = flow.scales(SIZE)
    coarse, noise = basis(scales)
    S, t = covariance_at(scales[0]), flow.ends[0]
    a = flow.start_share(1, MERGES[pyramid])
    U = as_matrix(lambda x: upsample(x, SIZE), scales[0])
    trained = a**2 * U @ S @ U.mT + (1 - a) ** 2 * eye(SIZE.volume)

    def spread(start, data):
        """Covariance of a start that is linear in the coarse latent, of covariance data."""
        flat = start.flatten(1)
        ours, others = flat[: scales[0].volume], flat[scales[0].volume :]
        return ours.mT @ data @ ours + others.mT @ others

    handed = flow.handoff(coarse, 1, SIZE, noise)
    landed = flow.jump(coarse, 1, SIZE, noise)
    end = t**2 * S + (1 - t) ** 2 * eye(scales[0].volume)
    assert torch.allclose(spread(handed, S), trained)
    assert torch.allclose(spread(landed, end), trained)
    # A coarse latent with the noise of its level would bring more than training knew.
    assert not torch.allclose(spread(handed, end / t**2), trained, rtol=0.05)
