"""Motion as channels of a latent: optical flow pooled to latent cells and compressed.

m = asinh(u / u0) with u in frame widths per second, so that slow motion is legible and values do
not change between pyramid levels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hstvg.scales import Scale, pool, upsample

MOTION_CHANNELS = 2
REFERENCE_SPEED = 0.05
"""u0: frame widths per second at which the compression sets in."""


def motion_channels(
    motion: Float[Tensor, "B 2 T Hm Wm"], confidence: Float[Tensor, "B 1 T Hm Wm"], size: Scale
) -> tuple[Float[Tensor, "B 2 t h w"], Float[Tensor, "B 1 t h w"]]:
    """Trusted flow averaged over each latent cell and compressed, and the trust in each cell."""
    trust = F.adaptive_avg_pool3d(confidence, size)
    pooled = F.adaptive_avg_pool3d(motion * confidence, size) / trust.clamp_min(1e-3)
    return torch.asinh(pooled / REFERENCE_SPEED), trust


def fill_unknown(
    channels: Float[Tensor, "B 2 t h w"], trust: Float[Tensor, "B 1 t h w"], coarsest: Scale
) -> Float[Tensor, "B 2 t h w"]:
    """Cells nobody knows the motion of get the mean of those around that somebody does, within a
    cell of the coarsest level; 0 where there are none. Coarser levels, which are means, then say
    how the known part moves."""
    known = (trust > 0).to(channels)
    mean = pool(channels * known, coarsest) / pool(known, coarsest).clamp_min(1e-6)
    return torch.where(trust > 0, channels, upsample(mean, Scale(*channels.shape[2:])))


def read_motion(channels: Float[Tensor, "B 2 t h w"]) -> Float[Tensor, "B 2 t h w"]:
    """Frame widths per second from motion channels."""
    return torch.sinh(channels) * REFERENCE_SPEED
