import pytest
import torch
from torch.distributions import MultivariateNormal

from hstvg.paths.gaussian_path import Endpoints, GaussianPath

B, C, CELLS = 3, 2, (2, 1, 2)
N = 4


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def covariance(*batch, seed):
    root = normal(*batch, N, N, seed=seed)
    return root @ root.mT + torch.eye(N, dtype=torch.float64)


def straight(tau=0.3):
    return GaussianPath.straight(torch.full((B,), tau, dtype=torch.float64))


BENT = GaussianPath(alpha=0.4, sigma=0.7, alpha_rate=0.5, sigma_rate=-0.2)
"""Where alpha + sigma is not 1, as of the part of x that pooling does not see."""
ENDS = Endpoints(normal(B, C, *CELLS, seed=1), normal(B, C, *CELLS, seed=2))


def point(path):
    return path.alpha * ENDS.data + path.sigma * ENDS.noise


@pytest.mark.parametrize("coloured", [None, (), (B,)], ids=["white", "coloured", "by clip"])
@pytest.mark.parametrize("path", [straight(), BENT], ids=["straight", "bent"])
def test_every_guess_says_all(path, coloured):
    sigma = None if coloured is None else covariance(*coloured, seed=3)
    x, score = point(path), path.score(ENDS, sigma)
    for read in (
        path.of_velocity(x, path.velocity(ENDS)),
        path.of_data(x, ENDS.data),
        path.of_noise(x, ENDS.noise),
        path.of_score(x, score, sigma),
    ):
        assert torch.allclose(read.data, ENDS.data)
        assert torch.allclose(read.noise, ENDS.noise)


def test_a_straight_path_by_hand():
    path, x = straight(0.25), point(straight(0.25))
    velocity = ENDS.data - ENDS.noise
    assert torch.equal(path.velocity(ENDS), velocity)
    assert torch.allclose(path.of_velocity(x, velocity).data, x + 0.75 * velocity)
    assert torch.allclose(path.of_velocity(x, velocity).noise, x - 0.25 * velocity)
    assert torch.allclose(path.score(ENDS), -ENDS.noise / 0.75)


def test_a_rate_is_that_of_time():
    slow = GaussianPath.straight(torch.full((B,), 0.3, dtype=torch.float64), rate=0.5)
    assert torch.allclose(slow.velocity(ENDS), 0.5 * straight().velocity(ENDS))
    assert torch.allclose(slow.of_velocity(point(slow), slow.velocity(ENDS)).data, ENDS.data)


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_a_velocity_says_both_ends_also_at_them(tau):
    path = straight(tau)
    read = path.of_velocity(point(path), path.velocity(ENDS))
    assert torch.allclose(read.data, ENDS.data)
    assert torch.allclose(read.noise, ENDS.noise)
    silent = path.of_data(point(path), ENDS.data) if tau else path.of_noise(point(path), ENDS.noise)
    assert not torch.isfinite(silent.noise if tau else silent.data).any()


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("coloured", [False, True])
def test_the_score_of_noisy_data_is_its_mean_velocity(coloured, tau):
    """Data N(mean, S): density and conditional mean are known, and each says the other."""
    mean, S = normal(N, seed=4), covariance(seed=5)
    sigma = covariance(seed=6) if coloured else torch.eye(N, dtype=torch.float64)
    noisy = tau**2 * S + (1 - tau) ** 2 * sigma
    x = normal(B, C, *CELLS, seed=7).requires_grad_()
    MultivariateNormal(tau * mean, noisy).log_prob(x.flatten(2)).sum().backward()
    score = x.grad
    assert score is not None
    gain = (tau * S - (1 - tau) * sigma) @ torch.linalg.inv(noisy)
    velocity = mean + (x.detach().flatten(2) - tau * mean) @ gain.mT
    velocity = velocity.reshape(x.shape)

    path, given = straight(tau), sigma if coloured else None
    assert torch.allclose(path.velocity(path.of_score(x, score, given)), velocity)
    assert torch.allclose(path.score(path.of_velocity(x, velocity), given), score)
    by_formula = (x.flatten(2) + (1 - tau) * score.flatten(2) @ sigma) / tau
    assert torch.allclose(by_formula.reshape(x.shape), velocity)
