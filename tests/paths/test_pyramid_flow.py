import inspect
from math import log, sqrt

import pytest
import torch

from hstvg.paths.pyramid_flow import PyramidFlow, read_pyramid
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


@pytest.mark.parametrize("t", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("merge", MERGES)
def test_of_unit_noises_the_jump_makes_white_noise_exactly(merge, t):
    """It is linear: its covariance is that of a basis sent through, without any draws."""
    flow, scale = PyramidFlow(boundaries=(t, 1.0)), Scale(*MERGES[merge])
    unit = torch.eye(1 + merge, dtype=torch.float64)
    end, fresh = (1 - t) * unit[:, :1].view(-1, 1, 1, 1, 1), unit[:, 1:].view(-1, 1, *scale)
    landed = flow.jump(end, 1, scale, fresh).flatten(1)
    variance = (1 - flow.start_share(1, merge)) ** 2
    assert torch.allclose(landed.mT @ landed, variance * torch.eye(merge, dtype=torch.float64))


def test_a_jump_to_the_same_size_changes_nothing():
    x = noise(2, 3, 2, 2, 2)
    assert torch.allclose(FLOW.jump(x, 1, Scale(2, 2, 2), noise(2, 3, 2, 2, 2, seed=1)), x)


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


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_oracle_climbs_to_the_data(steps, solver):
    """And every level on the way knows its own; Heun's last step would ask where it knows not."""
    pyramid = latent()
    noises = [level_noise(level) for level in range(4)]
    climbed = FLOW.sample(oracle(pyramid), SCALES, noises, steps=steps, solver=solver)
    for x, y in zip(climbed.levels, pyramid.levels, strict=True):
        assert torch.allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_an_oracle_climbs_from_any_level(first):
    pyramid, noises = latent(), [level_noise(level) for level in range(4)]
    start = FLOW.handoff(pyramid.levels[first - 1], first, SCALES[first], noises[first])
    climbed = FLOW.sample(oracle(pyramid), SCALES, noises, steps=2, first=first, start=start)
    assert len(climbed.levels) == 4 - first
    for x, y in zip(climbed.levels, pyramid.levels[first:], strict=True):
        assert torch.allclose(x, y, atol=1e-5)


def test_a_finer_level_needs_a_start():
    with pytest.raises(ValueError, match="level 2 begins with a start of its own"):
        FLOW.sample(oracle(latent()), SCALES, [level_noise(i) for i in range(4)], steps=1, first=2)


@pytest.mark.parametrize("steps", [1, 3])
def test_heun_asks_twice_a_step_but_never_at_the_data(steps):
    asked = []

    def velocity(x, tau, level):
        asked.append((level, tau[0].item()))
        return torch.zeros_like(x)

    noises = [level_noise(level) for level in range(4)]
    FLOW.sample(velocity, SCALES, noises, steps=steps, solver="heun")
    assert len(asked) == 2 * 4 * steps - 1
    assert [level for level, tau in asked if tau == 1] == [0, 1, 2]


@pytest.mark.parametrize("level", range(4))
def test_a_velocity_says_the_clean_latent_of_its_level(level):
    """Exactly, at both ends of the path and between, and for every clip at its own time."""
    for times in ((0.0, 1.0), (0.3, 0.8)):
        tau = torch.tensor(times, dtype=torch.float64)
        sample = FLOW.at(latent(), level, level_noise(level), tau)
        clean = FLOW.clean(sample.x, sample.velocity, tau, level, SCALES)
        assert torch.allclose(clean, latent().levels[level])
        if level == 3:
            rest = 1 - tau.view(-1, 1, 1, 1, 1)
            assert torch.allclose(clean, sample.x + rest * sample.velocity)


def test_on_the_way_an_oracle_keeps_the_noise_of_the_path():
    """At the start of every level: mean a_i U y_{i-1}, and white noise of deviation 1 - a_i."""
    count = 4000
    one = FLOW.pyramid(noise(1, 1, *SCALES.last), SCALES)
    pyramid = type(one)(levels=tuple(y.expand(count, -1, -1, -1, -1) for y in one.levels))
    noises = [noise(count, 1, *scale, seed=1 + i) for i, scale in enumerate(SCALES)]
    guess, starts = oracle(pyramid), []

    def velocity(x, tau, level):
        starts.append(x)  # the one step of a level begins at its start
        return guess(x, tau, level)

    FLOW.sample(velocity, SCALES, noises, steps=1)
    for level, merge in ((1, 2), (2, 4), (3, 8)):
        a = FLOW.start_share(level, merge)
        coarse = upsample(pyramid.levels[level - 1], SCALES[level])
        left = ((starts[level] - a * coarse) / (1 - a))[..., :4, :4]
        mean, covariance = moments(left)
        assert mean.abs().max() < 5 / sqrt(count)
        assert (covariance - torch.eye(len(mean))).abs().max() < 5 * sqrt(2 / count)


@pytest.mark.parametrize(
    ("pyramid", "expected"),
    [
        ("cubic", [(2, 2, 2), (4, 4, 4), (8, 8, 8)]),
        ("space", [(8, 2, 2), (8, 4, 4), (8, 8, 8)]),
        ("time", [(2, 8, 8), (4, 8, 8), (8, 8, 8)]),
        ([(1, 2, 2), (1, 4, 4), (4, 4, 4)], [(2, 4, 4), (2, 8, 8), (8, 8, 8)]),
    ],
)
def test_the_levels_of_a_pyramid(pyramid, expected):
    flow = PyramidFlow(boundaries=(0.2, 0.5, 1.0), pyramid=pyramid)
    assert list(flow.scales((8, 8, 8))) == expected
    other = [(2 * t, h, 3 * w) for t, h, w in expected]
    assert list(flow.scales((16, 8, 24))) == other


@pytest.mark.parametrize(
    ("pyramid", "message"),
    [
        ("time", r"4x8x8 has 3 levels in a time pyramid, but boundaries .* ask for 4"),
        ([(1, 2, 3), (1, 4, 3), (2, 4, 9), (4, 8, 9)], "1x2x3 of 4x8x9 has no whole size in 4x8x8"),
    ],
)
def test_a_latent_that_has_not_the_levels_is_refused(pyramid, message):
    with pytest.raises(ValueError, match=message):
        PyramidFlow(boundaries=FLOW.ends, pyramid=pyramid).scales((4, 8, 8))


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pyramid": [(2, 2, 2)]}, "1 sizes for 2 boundaries"),
        ({"pyramid": [(2, 2, 2), (3, 4, 4)]}, "2x2x2 does not divide the last"),
        (
            {"pyramid": [(2, 2, 2), (3, 6, 6), (6, 6, 6)], "boundaries": (0.2, 0.5, 1.0)},
            "2x2x2 is not whole in 3x6x6",
        ),
        ({"tau": "normal"}, "tau=normal: choose from uniform, logit_normal"),
        ({"tau_shift": 0.0}, "tau_shift=0.0 must be above 0"),
    ],
)
def test_a_path_that_cannot_be_is_refused(changes, message):
    """Also where nobody checks types, as under a config."""
    flow = object.__new__(PyramidFlow)
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(PyramidFlow.__init__)(flow, **changes)


def test_an_unknown_pyramid_is_refused():
    with pytest.raises(ValueError, match="pyramid=cube: choose from cubic, space, time, or list"):
        inspect.unwrap(read_pyramid)("cube", 2)


def test_logit_normal_times():
    times = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    flow = PyramidFlow(tau="logit_normal", tau_shift=3.0)
    first, second = (torch.logit(flow.draw_tau(times, level)) for level in (0, 1))
    assert (second.diff() > 0).all()
    assert second.mean().item() == pytest.approx(0, abs=1e-9)
    assert second.std().item() == pytest.approx(1, abs=0.005)
    assert torch.allclose(first, second - log(3))
    # One standard deviation from the middle.
    one = torch.tensor([0.8413447460685429], dtype=torch.float64)
    assert flow.draw_tau(one, 1).item() == pytest.approx(0.7310585786300049)


def test_logit_normal_times_stay_on_the_path():
    """Also of the least and the largest number that float32 draws."""
    times = torch.tensor([0.0, 1 - 2**-24, 1.0])
    for level in (0, 1):
        drawn = PyramidFlow(tau="logit_normal", tau_shift=2.0).draw_tau(times, level)
        assert (drawn >= 0).all()
        assert (drawn <= 1).all()


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0, 8.0])
def test_tau_shift_rises_and_keeps_the_ends(shift):
    times = PyramidFlow(tau_shift=shift).draw_tau(torch.linspace(0, 1, 101), 0)
    assert (times.diff() > 0).all()
    assert times[0] == 0
    assert times[-1] == 1
