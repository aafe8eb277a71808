"""GaussianPath: a path between noise and data, seen as a flow and as a diffusion.

A point of the path mixes the data y with noise n ~ N(0, Sigma), and moves as tau does:

    x = alpha y + sigma n        straight: alpha = tau, sigma = 1 - tau  (arXiv 2210.02747)
    v = alpha' y + sigma' n      d x / d tau
    s = - Sigma^-1 n / sigma     the score, grad log p(x | y)

Given x, each of y, n, v and s is affine in each other one, and so are their means given x: a
network that guesses one has guessed all, E[s | x] being the score of the noisy data (arXiv
2011.13456). With y and n eliminated, v = (x + (1 - tau) Sigma s) / tau on a straight path.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Coefficient = Float[Tensor, "B 1 1 1 1"] | float


class Endpoints(NamedTuple):
    """What lies at the two ends of a path: data at 1 and noise at 0, or guesses of them."""

    data: Float[Tensor, "B C t h w"]
    noise: Float[Tensor, "B C t h w"]


@dataclass(frozen=True, kw_only=True)
class GaussianPath:
    """The coefficients of a path at one time per clip.

    `of_...` read a guess that was made at x as both ends; `velocity` and `score` write them as
    another guess. Where a guess says nothing of an end the result is infinite or not a number: data
    of the noise where alpha = 0, noise of the data and any score where sigma = 0. The velocity
    always says both, which is why networks of this house guess it.

    A covariance is one over the cells t h w of a clip, of all clips or each its own; channels are
    independent and alike. None is white noise.
    """

    alpha: Coefficient
    sigma: Coefficient
    alpha_rate: Coefficient
    """alpha' = d alpha / d tau."""
    sigma_rate: Coefficient

    @classmethod
    def straight(cls, time: Float[Tensor, "B"], rate: float = 1.0) -> "GaussianPath":
        """From noise at time 0 to data at time 1, where time passes `rate` times as fast as tau."""
        share = time.view(-1, 1, 1, 1, 1)
        return cls(alpha=share, sigma=1 - share, alpha_rate=rate, sigma_rate=-rate)

    def of_velocity(
        self, x: Float[Tensor, "B C t h w"], velocity: Float[Tensor, "B C t h w"]
    ) -> Endpoints:
        """v-prediction: x and v are two equations for y and n."""
        determinant = self.alpha * self.sigma_rate - self.alpha_rate * self.sigma
        return Endpoints(
            data=(self.sigma_rate * x - self.sigma * velocity) / determinant,
            noise=(self.alpha * velocity - self.alpha_rate * x) / determinant,
        )

    def of_data(self, x: Float[Tensor, "B C t h w"], data: Float[Tensor, "B C t h w"]) -> Endpoints:
        """x-prediction: the noise is what the data leaves over."""
        return Endpoints(data=data, noise=(x - self.alpha * data) / self.sigma)

    def of_noise(
        self, x: Float[Tensor, "B C t h w"], noise: Float[Tensor, "B C t h w"]
    ) -> Endpoints:
        """Epsilon-prediction: the data is what the noise leaves over."""
        return Endpoints(data=(x - self.sigma * noise) / self.alpha, noise=noise)

    def of_score(
        self,
        x: Float[Tensor, "B C t h w"],
        score: Float[Tensor, "B C t h w"],
        covariance: Float[Tensor, "*B N N"] | None = None,
    ) -> Endpoints:
        """n = - sigma Sigma s."""
        if covariance is not None:
            score = (covariance @ score.flatten(2).mT).mT.reshape(x.shape)
        return self.of_noise(x, -self.sigma * score)

    def velocity(self, ends: Endpoints) -> Float[Tensor, "B C t h w"]:
        return self.alpha_rate * ends.data + self.sigma_rate * ends.noise

    def score(
        self, ends: Endpoints, covariance: Float[Tensor, "*B N N"] | None = None
    ) -> Float[Tensor, "B C t h w"]:
        """s = - Sigma^-1 n / sigma."""
        noise = ends.noise
        if covariance is not None:
            noise = torch.linalg.solve(covariance, noise.flatten(2).mT).mT.reshape(noise.shape)
        return -noise / self.sigma
