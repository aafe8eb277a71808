from math import sqrt

import pytest
import torch

from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.scales import Ladder, Scale, upsample

SCALES = Ladder([(1, 2, 2), (2, 2, 2), (2, 4, 4), (4, 8, 8)])
"""Merge factors 2, 4 and 8 from rung to rung."""
FLOW = PyramidFlow(boundaries=(0.2, 0.5, 0.8, 1.0))
MERGES = {2: (2, 1, 1), 4: (1, 2, 2), 8: (2, 2, 2)}


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def latent():
    return FLOW.pyramid(noise(2, 3, *SCALES.last), SCALES)


def level_noise(level):
    return noise(2, 3, *SCALES[level], seed=1 + level)


def at(level, tau):
    return FLOW.at(latent(), level, level_noise(level), torch.full((2,), tau, dtype=torch.float64))


@pytest.mark.parametrize(
    ("t", "merge", "expected"),
    # 1 / (1 + sqrt(m)) at t = 1/2; for m = 4 the published 1/3.
    [(0.5, 4, 1 / 3), (0.5, 1, 0.5), (0.5, 8, 0.261204), (0.8, 4, 2 / 3), (0.2, 4, 1 / 9)],
)
def test_start_share_by_hand(t, merge, expected):
    flow = PyramidFlow(boundaries=(t, 1.0))
    assert flow.start_share(1, merge) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("level", range(4))
def test_end_points(level):
    start, end = at(level, 0.0), at(level, 1.0)
    assert torch.equal(start.x, start.start)
    assert torch.equal(end.x, end.end)
    z, n, t = latent().levels[level], level_noise(level), FLOW.ends[level]
    assert torch.allclose(end.end, t * z + (1 - t) * n)
    if level == 0:
        assert torch.equal(start.start, n)
    else:
        a = FLOW.start_share(level, {1: 2, 2: 4, 3: 8}[level])
        coarse = upsample(latent().levels[level - 1], SCALES[level])
        assert torch.allclose(start.start, a * coarse + (1 - a) * n)


def test_the_last_level_ends_at_the_data():
    assert torch.equal(at(3, 1.0).end, latent().finest)


@pytest.mark.parametrize("level", range(4))
def test_the_velocity_is_the_derivative_of_the_path(level):
    step = 1e-4
    for tau in (0.1, 0.5, 0.9):
        slope = (at(level, tau + step).x - at(level, tau - step).x) / (2 * step)
        assert torch.allclose(at(level, tau).velocity, slope, atol=1e-8)


def test_every_clip_has_its_own_time():
    tau = torch.tensor([0.0, 1.0], dtype=torch.float64)
    sample = FLOW.at(latent(), 1, level_noise(1), tau)
    assert torch.equal(sample.x[0], sample.start[0])
    assert torch.equal(sample.x[1], sample.end[1])


def moments(x):
    flat = x.flatten(1)
    return flat.mean(0), torch.cov(flat.T)


@pytest.mark.parametrize("t", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("merge", MERGES)
def test_the_jump_restores_the_covariance_of_the_path(merge, t):
    flow, scale = PyramidFlow(boundaries=(t, 1.0)), Scale(*MERGES[merge])
    count = 200_000
    end = (1 - t) * noise(count, 1, 1, 1, 1)
    _, covariance = moments(flow.jump(end, 1, scale, noise(count, 1, *scale, seed=1)))
    variance = (1 - flow.start_share(1, merge)) ** 2
    # Sampling error of a covariance entry: variance / sqrt(200 000), about 0.2 %.
    assert (covariance / variance - torch.eye(merge)).abs().max() < 0.012


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_level_starts_where_the_jump_lands(level):
    """Same mean and covariance, cell by cell, for one clip and many noises."""
    count = 40_000
    # A grid of 8 cells at the finer side, so that every pair of cells is looked at.
    fine = Scale(*{1: (2, 2, 2), 2: (1, 4, 4), 3: (2, 4, 4)}[level])
    coarse = Scale(*{1: (1, 2, 2), 2: (1, 2, 2), 3: (1, 2, 2)}[level])
    z = noise(1, 1, *fine).expand(count, -1, -1, -1, -1)
    levels = [z] * 4
    levels[level - 1] = torch.nn.functional.adaptive_avg_pool3d(z, coarse)
    pyramid = type(latent())(levels=tuple(levels))
    start = FLOW.at(pyramid, level, noise(count, 1, *fine, seed=1), torch.zeros(count)).start
    t = FLOW.ends[level - 1]
    end = t * levels[level - 1] + (1 - t) * noise(count, 1, *coarse, seed=2)
    landed = FLOW.jump(end, level, fine, noise(count, 1, *fine, seed=3))
    (mean_a, covariance_a), (mean_b, covariance_b) = moments(start), moments(landed)
    deviation = 1 - FLOW.start_share(level, fine.volume // coarse.volume)
    # Five standard errors of a difference of means and of covariances of 40 000 draws.
    assert (mean_a - mean_b).abs().max() < 5 * deviation * sqrt(2 / count)
    assert (covariance_a - covariance_b).abs().max() < 5 * deviation**2 * sqrt(4 / count)


def oracle(pyramid):
    """The velocity of a world that holds one clip: the noise in x is what the clip leaves over."""

    def velocity(x, tau, level):
        t, fine = FLOW.ends[level], pyramid.levels[level]
        a, coarse = 0.0, torch.zeros_like(fine)
        if level:
            scale = Scale(*fine.shape[2:])
            a = FLOW.start_share(level, scale.volume // SCALES[level - 1].volume)
            coarse = upsample(pyramid.levels[level - 1], scale)
        s = tau.view(-1, 1, 1, 1, 1)
        n = (x - (1 - s) * a * coarse - s * t * fine) / ((1 - s) * (1 - a) + s * (1 - t))
        return t * fine + (1 - t) * n - a * coarse - (1 - a) * n

    return velocity


@pytest.mark.parametrize("steps", [1, 3])
def test_an_oracle_climbs_to_the_data(steps):
    pyramid = latent()
    noises = [level_noise(level) for level in range(4)]
    climbed = FLOW.sample(oracle(pyramid), SCALES, noises, steps=steps)
    assert [x.shape[2:] for x in climbed.levels] == [tuple(scale) for scale in SCALES]
    assert torch.allclose(climbed.finest, pyramid.finest, atol=1e-5)


def test_on_the_way_an_oracle_keeps_the_noise_of_the_path():
    """At the end of every level: mean t_i y_i, and white noise of deviation 1 - t_i."""
    count = 4000
    one = FLOW.pyramid(noise(1, 1, *SCALES.last), SCALES)
    pyramid = type(one)(levels=tuple(y.expand(count, -1, -1, -1, -1) for y in one.levels))
    noises = [noise(count, 1, *scale, seed=1 + i) for i, scale in enumerate(SCALES)]
    climbed = FLOW.sample(oracle(pyramid), SCALES, noises, steps=1)
    for level in (0, 1, 2):
        t, x = FLOW.ends[level], climbed.levels[level]
        left = (x - t * pyramid.levels[level]) / (1 - t)
        mean, covariance = moments(left)
        assert mean.abs().max() < 5 / sqrt(count)
        assert (covariance - torch.eye(len(mean))).abs().max() < 5 * sqrt(2 / count)


@pytest.mark.parametrize(
    "boundaries",
    [(0.5,), (0.0, 1.0), (-0.1, 1.0), (0.5, 0.5, 1.0), (0.8, 0.5, 1.0), (0.5, 1.0, 1.5), ()],
)
def test_bad_boundaries_are_refused(boundaries):
    with pytest.raises(ValueError, match="rise from above 0 to exactly 1"):
        PyramidFlow(boundaries=boundaries)


def test_tau_shift_by_hand():
    flow = PyramidFlow(boundaries=(0.5, 1.0), tau_shift=3.0)
    times = torch.tensor([0.0, 0.5, 0.75, 1.0])
    # 0.5 / (0.5 + 3 * 0.5) and 0.75 / (0.75 + 3 * 0.25)
    assert flow.draw_tau(times, 0).tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0])
    assert torch.equal(flow.draw_tau(times, 1), times)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0, 8.0])
def test_tau_shift_rises_and_keeps_the_ends(shift):
    times = PyramidFlow(tau_shift=shift).draw_tau(torch.linspace(0, 1, 101), 0)
    assert (times.diff() > 0).all()
    assert times[0] == 0
    assert times[-1] == 1
