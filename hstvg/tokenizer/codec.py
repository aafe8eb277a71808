"""ScaleCodec: one latent as a sum of contributions from coarse to fine.

Proposal VideoAR, multi-scale latent tokens. With D_k averaging down to scale k and U_k nearest
upsampling, rho_0 = z:

    r_k     = D_k rho_{k-1}
    h_k     = U_k r_k + (I - U_k D_k) g_k(U_k r_k, z_hat_{k-1})
    z_hat_k = z_hat_{k-1} + h_k,    rho_k = rho_{k-1} - h_k

g_k guesses detail; the projector keeps that guess in the null space of D_k, so that
D_k z_hat_k = D_k z_hat_{k-1} + r_k holds whatever g_k learns, and z_hat_K = z.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.conv import zero_init
from hstvg.scales import Scale, ScaleSchedule, null_space, pool, upsample
from hstvg.types import LatentPyramid


class ScaleCodec(nn.Module):
    """Splits a latent into residuals per scale and merges any prefix of them.

    Args:
        channels: latent channels.
        scales: coarse to fine; the last is the usual size of a latent. One of another size is split
            into as many scales, counted from its own.
    """

    def __init__(self, channels: int, scales: ScaleSchedule) -> None:
        super().__init__()
        self.scales = scales
        self.detail = nn.ModuleList(
            zero_init(nn.Conv3d(2 * channels, channels, 3, padding=1)) for _ in scales[:-1]
        )

    def split(
        self, z: Float[Tensor, "B C t h w"]
    ) -> tuple[tuple[Float[Tensor, "B C _t _h _w"], ...], LatentPyramid]:
        """Residuals r_1..r_K, and the states z_hat_1..z_hat_K at full size."""
        residuals, states = [], []
        state = torch.zeros_like(z)
        for k, scale in enumerate(self._scales_of(z)):
            residual = pool(z - state, scale)
            state = state + self._contribution(residual, state, k)
            residuals.append(residual)
            states.append(state)
        return tuple(residuals), LatentPyramid(levels=tuple(states))

    def merge(
        self, residuals: tuple[Float[Tensor, "B C _t _h _w"], ...]
    ) -> Float[Tensor, "B C t h w"]:
        """z_hat_k from the first k residuals."""
        first = residuals[0]
        state = first.new_zeros(*first.shape[:2], *self.scales.last)
        for k, residual in enumerate(residuals):
            state = state + self._contribution(residual, state, k)
        return state

    def _scales_of(self, z: Float[Tensor, "B C t h w"]) -> ScaleSchedule:
        if z.shape[2:] == tuple(self.scales.last):
            return self.scales
        return ScaleSchedule.cubic(z.shape[2:]).finest(len(self.scales))

    def _contribution(
        self, residual: Float[Tensor, "B C _t _h _w"], state: Float[Tensor, "B C t h w"], k: int
    ) -> Float[Tensor, "B C t h w"]:
        scale, last = Scale(*residual.shape[2:]), Scale(*state.shape[2:])
        coarse = upsample(residual, last)
        if k == len(self.scales) - 1:
            return coarse
        seen = torch.cat([coarse, state], dim=1)
        detail = self.detail[k]
        guess = detail(seen.to(next(detail.parameters()).dtype)).float()
        return coarse + null_space(guess, scale)
