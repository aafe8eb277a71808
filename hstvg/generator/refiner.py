"""CrossFrameRefiner: mends in a frame what the frames beside it know better.

Proposal Hierarchical Video Generation, cross-frame refinement. For every latent frame i and each of
R steps, with W carrying a neighbour along the motion to where its content is in frame i:

    z_i^(k) = z_i^(k-1) + f(z_i, W(z_{i-1}), W(z_{i+1}), z_{i-1}, z_{i+1}, m_i, k)

all on the right of step k-1. f sees the neighbours unmoved, too, since warping a latent is not
exact. A step sees one frame to each side; before the first may come the last of the block before,
so that blocks meet without a seam.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.generator.neighbours import Before, Neighbours, find_neighbours
from hstvg.nn.conv import zero_init
from hstvg.nn.norm import ChannelNorm
from hstvg.nn.warp import warp


class CrossFrameRefiner(nn.Module):
    """Residual restoration of a latent by its neighbours in time; the identity at first.

    Args:
        channels: C of the latent.
        seconds: from one latent frame to the next.
        width: of the hidden layers.
        depth: blocks of f.
        steps: R.

    Raises:
        ValueError: it would do nothing.
    """

    def __init__(
        self, *, channels: int, seconds: float, width: int = 48, depth: int = 2, steps: int = 2
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps={steps}: a refiner takes at least one")
        self.seconds = seconds
        self.steps = steps
        # The frame, its neighbours carried and as they are, the motion and two marks.
        self.enter = nn.Conv3d(5 * channels + 4, width, (1, 3, 3), padding=(0, 1, 1))
        self.step = nn.Embedding(steps, width)
        self.blocks = nn.ModuleList(FrameBlock(width) for _ in range(depth))
        self.norm = ChannelNorm(width)
        self.leave = zero_init(nn.Conv3d(width, channels, 1))

    def forward(
        self,
        z: Float[Tensor, "B C t h w"],
        motion: Float[Tensor, "B 2 t h w"],
        before: Before | None = None,
    ) -> tuple[Float[Tensor, "B C t h w"], ...]:
        """z^(1) .. z^(R), float32.

        Args:
            motion: channels, as `motion_channels` makes them.
            before: None where no clip follows a block.
        """
        z = z.float()
        beside = find_neighbours(z, motion, self.seconds, before)
        steps = []
        for k in range(self.steps):
            z = z + self._correction(z, motion, beside, k)
            steps.append(z)
        return tuple(steps)

    def _correction(
        self,
        z: Float[Tensor, "B C t h w"],
        motion: Float[Tensor, "B 2 t h w"],
        beside: Neighbours,
        k: int,
    ) -> Float[Tensor, "B C t h w"]:
        """f."""
        previous, following = beside.previous(z), beside.following(z)
        carried = (warp(previous, beside.back), warp(following, beside.on))
        seen = torch.cat([z, *carried, previous, following, motion.float(), beside.marks], dim=1)
        # Channels last: the norms look at a position's channels together.
        seen = seen.to(self.enter.weight.dtype).contiguous(memory_format=torch.channels_last_3d)
        step = self.step(torch.full((len(z),), k, device=z.device))
        hidden = self.enter(seen) + step[..., None, None, None]
        for block in self.blocks:
            hidden = block(hidden)
        return self.leave(F.silu(self.norm(hidden))).float()


class FrameBlock(nn.Module):
    """A residual block inside each frame: 3x3 in space and the mean of the frame, then the channels
    of each position.

    What has become of a whole frame, its brightness say, is seen far better in the mean of its
    differences from its neighbours than in any place, where real change hides it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.space = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.frame = nn.Conv3d(width, width, 1, bias=False)
        self.mix = nn.Conv3d(width, width, 1)

    def forward(self, x: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        seen = F.silu(self.norm(x))
        seen = self.space(seen) + self.frame(seen.mean((3, 4), keepdim=True))
        return x + self.mix(F.silu(seen))
