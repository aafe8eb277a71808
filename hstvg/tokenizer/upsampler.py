"""ScaleUpsampler: raises a scale's contribution to the size of the finished latent.

Proposal VideoAR, scale upsampler. Nearest upsampling U spreads a value over the cells it stands
for; a convolution g guesses the detail in them from what is known so far, kept in the null space of
pooling D by the projector:

    h = U r + (I - U D) g(U r, z_hat)        so that  D h = r  whatever g learns

The codec builds its states with it, the transformer reads them, and the pyramid's jump uses the
same U: all mean the same by a coarse latent.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.conv import zero_init
from hstvg.scales import Scale, null_space, upsample


class ScaleUpsampler(nn.Module):
    """The contribution of one rung; silent beside U r at first.

    Args:
        channels: of the latent.
        guesses: False for a rung of full size, which leaves no detail: weights that are never used
            would have no gradient, which a sharded optimiser does not forgive.
    """

    def __init__(self, channels: int, *, guesses: bool = True) -> None:
        super().__init__()
        self.detail = None
        if guesses:
            # The projector would take any bias away.
            self.detail = zero_init(nn.Conv3d(2 * channels, channels, 3, padding=1, bias=False))

    def forward(
        self, residual: Float[Tensor, "B C _t _h _w"], state: Float[Tensor, "B C t h w"]
    ) -> Float[Tensor, "B C t h w"]:
        """h from the residual r of a scale and the state z_hat before it; float32."""
        scale, size = Scale(*residual.shape[2:]), Scale(*state.shape[2:])
        coarse = upsample(residual, size)
        if self.detail is None or scale == size:
            return coarse
        seen = torch.cat([coarse, state], dim=1).to(self.detail.weight.dtype)
        return coarse + null_space(self.detail(seen).float(), scale)
