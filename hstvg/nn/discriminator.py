"""PatchDiscriminator: does each place of a clip look real? As arXiv 1611.07004, in 3D."""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.norm import ChannelNorm


class PatchDiscriminator(nn.Module):
    """Strided 3D convolutions and a logit per patch; clips of any size, single frames too.

    Its norms look at one position, so a clip is judged alike in any batch. A patch is
    2^(depth + 1) - 1 frames, rows and columns.

    Args:
        base: channels after the first convolution, doubled by every further one.
        depth: convolutions, each of which halves every axis.
    """

    def __init__(self, *, base: int = 32, depth: int = 3) -> None:
        super().__init__()
        widths = [3, *(base * 2**i for i in range(depth))]
        self.steps = nn.ModuleList(
            nn.Conv3d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        # None after the first: contrast and colour themselves are worth judging.
        self.norms = nn.ModuleList([nn.Identity(), *(ChannelNorm(width) for width in widths[2:])])
        self.leave = nn.Conv3d(widths[-1], 1, 1)

    def forward(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B P"]:
        """Logits of P patches, above 0 where real is likelier."""
        x = pixels
        for step, norm in zip(self.steps, self.norms, strict=True):
            x = F.leaky_relu(norm(step(x)), 0.2)
        return self.leave(x).flatten(1)
