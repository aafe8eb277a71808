"""The frames beside each frame of a latent, and where in them its content lies."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hstvg.generator.motion import read_motion
from hstvg.nn.warp import warp


@dataclass(frozen=True, kw_only=True)
class Before:
    """The last latent frame of the block before, which stays as it is."""

    latent: Float[Tensor, "B C 1 h w"]
    motion: Float[Tensor, "B 2 1 h w"]
    """Channels, as those of the block."""
    known: Bool[Tensor, "B"]
    """False where a clip follows no block; what stands here is then not read."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The way from each frame to those beside it, W; a frame that has none is its own."""

    before: Before
    back: Float[Tensor, "B 2 t h w"]
    """To where a cell's content was in the frame before: (x, y) in cells."""
    on: Float[Tensor, "B 2 t h w"]
    """To where it will be in the next."""

    def previous(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        return shifted(z, self.before.latent, self.before.known)

    def following(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        return torch.cat([z[:, :, 1:], z[:, :, -1:]], dim=2)

    def change(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        """delta_W z: what is new in each frame beside the one before, carried to it."""
        return z - warp(self.previous(z), self.back)

    @property
    def marks(self) -> Float[Tensor, "B 2 t h w"]:
        """1 where there is a frame before, and where there is one after."""
        marks = torch.ones_like(self.on)
        marks[:, 0, 0] = self.before.known[:, None, None].to(marks)
        marks[:, 1, -1] = 0
        return marks


def find_neighbours(
    z: Float[Tensor, "B C t h w"],
    motion: Float[Tensor, "B 2 t h w"],
    seconds: float,
    before: Before | None = None,
) -> Neighbours:
    """The neighbours of a block's frames.

    Motion is forward. To the next frame a cell's own motion leads. Back to the frame before leads
    minus the motion that the content had there, which is read where the cell's own motion, were it
    constant, says that the content was. On latents of the shape world this leaves 0.61 of the
    squared change between frames; a cell's motion in either of the two frames leaves 0.67 or 0.69.

    Args:
        motion: channels, as `motion_channels` makes them; cells are as tall as wide.
        seconds: from one latent frame to the next.
        before: None where no clip follows a block.
    """
    if before is None:
        nowhere = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        before = Before(latent=z[:, :, :1], motion=motion[:, :, :1], known=nowhere)
    cells = seconds * motion.shape[-1]  # of a frame width per second
    on = read_motion(motion.float()) * cells
    left = shifted(on, read_motion(before.motion.float()) * cells, before.known)
    return Neighbours(before=before, back=-warp(left, -on), on=on)


def shifted(
    x: Float[Tensor, "B C t h w"], first: Float[Tensor, "B C 1 h w"], known: Bool[Tensor, "B"]
) -> Float[Tensor, "B C t h w"]:
    """For each frame the one before; for the first one `first` where that is known, else itself."""
    own = torch.where(known.view(-1, 1, 1, 1, 1), first.to(x), x[:, :, :1])
    return torch.cat([own, x[:, :, :-1]], dim=2)
