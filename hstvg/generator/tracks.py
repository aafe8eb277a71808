"""Which cells show the same thing: what L_attention asks attention to find.

Tracks are composed of the motion between neighbouring latent frames. Motion says where a cell's
content goes, so a cell is looked for in later frames. Cells of a coarser grid hold content that
goes different ways: one of their latent cells is followed, and where it comes out is looked for.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hstvg.generator.ranges import check_ranges
from hstvg.nn.correspondence import Lookup
from hstvg.paths.draws import Draws
from hstvg.scales import Scale
from hstvg.types import Pair

STRIDES = (1, 2, 4)
"""Frames ahead in which a cell may be looked for, as far as the grid has them."""


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """What a config says of them."""

    num_frames: int
    """Of a training clip."""
    fps: float
    queries: int = 32
    """Cells looked up per clip and level."""
    heads: int = 2
    """Of their own that are asked; 0 asks the trunk's cells themselves."""
    still: float = 0.0
    """What a cell counts whose content stays, beside 1 of one whose content goes a cell or more.
    Most of a clip stays, and says nothing of how things move: rows that count alike taught less
    (docs/ablation_loss.md)."""

    def __post_init__(self) -> None:
        wrong = {
            "queries": self.queries < 1,
            "heads": self.heads < 0,
            "still": not 0 <= self.still <= 1,
        }
        check_ranges(self, wrong, group="tracks.")

    def seconds(self, frames: int, share: float = 1.0) -> float:
        """From one latent frame to the next.

        Args:
            frames: of the grid.
            share: the length of the clips as one of `num_frames`.
        """
        return share * self.num_frames / self.fps / frames


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where the cells of a Lookup went."""

    where: Float[Tensor, "B S cells"]
    """Weights over the cells of the later frame, bilinear in latent cells; they sum to 1."""
    weight: Float[Tensor, "B S"]
    """Trust in the track, 0 to 1; 0 where it left the frame."""


def draw_lookup(draws: Draws, size: Scale, count: int) -> Lookup:
    """`count` random cells of each clip, each to be found in a frame a stride ahead.

    Raises:
        ValueError: the grid has one frame, so there is nothing ahead.
    """
    strides = [stride for stride in STRIDES if stride < size.t]
    if not strides:
        raise ValueError(f"a grid of {size} has no later frame")
    which = (draws.uniform("lookup/stride", count) * len(strides)).long()
    ahead = torch.tensor(strides, device=which.device)[which]
    frame = (draws.uniform("lookup/frame", count) * (size.t - ahead)).long()
    cell = (draws.uniform("lookup/cell", count) * size.h * size.w).long()
    return Lookup(frame=frame, cell=cell, later=frame + ahead)


def follow(
    motion: Float[Tensor, "B 2 t h w"],
    trust: Float[Tensor, "B 1 t h w"],
    lookup: Lookup,
    size: Scale,
    seconds: float,
    draws: Draws,
    still: float,
) -> Found:
    """Where the cells of a lookup went: of each, the content of one of its latent cells.

    Args:
        motion: of latent cells, forward, (x, y) in frame widths per second; cells are square.
        trust: in the motion, 0 to 1.
        lookup: on a grid of `size`, that of the latent or a coarser one.
        seconds: from one frame of the latent to the next.
        still: as of Tracks.
    """
    t, h, w = motion.shape[2:]
    a, b, c = t // size.t, h // size.h, w // size.w
    part = draws.uniform("lookup/part", lookup.cell.shape[1], 3)
    frames, rows, columns = (part * part.new_tensor([a, b, c])).long().unbind(-1)
    frame, later = lookup.frame * a + frames, lookup.later * a + frames
    x, y = lookup.cell % size.w * c + columns, lookup.cell // size.w * b + rows
    begin = place = torch.stack([x, y], dim=-1).float()  # B S (x, y)
    weight = torch.ones_like(place[..., 0])
    fields = torch.cat([motion * seconds * w, trust], dim=1).float()
    for step in range(t - 1):
        at = frame + step
        moving = at < later
        met = read_at(fields, at.clamp_max(t - 1), place)
        place = torch.where(moving[..., None], place + met[..., :2], place)
        weight = torch.where(moving, weight * met[..., 2] * inside(place, h, w), weight)
    went = ((place - begin) / place.new_tensor([c, b])).norm(dim=-1).clamp_max(1)
    where = hats(place, h, w).unflatten(2, (size.h, b, size.w, c)).sum((3, 5)).flatten(2)
    return Found(where=where, weight=weight * (still + (1 - still) * went))


def pair_rows(
    logs: Float[Tensor, "Bn S A cells"], found: Found, tau: Float[Tensor, "Bn"], count: int
) -> Pair:
    """Rows of attention beside the true places, `count` rows of logs for each clip.

    Those of a clip count by tau, too: of one that is noise still, nobody can say where things are.
    """
    logs, time = logs.unflatten(0, (-1, count)), tau.view(-1, count, 1, 1, 1)
    return Pair(
        guess=logs,
        target=found.where[:, None, :, None].expand_as(logs),
        weight=time * found.weight[:, None, :, None, None],
    )


def read_at(
    fields: Float[Tensor, "B C t h w"],
    frame: Float[Tensor, "B S"] | Tensor,
    place: Float[Tensor, "B S 2"],
) -> Float[Tensor, "B S C"]:
    """Values of a frame at places in cells (x, y), bilinearly; beyond the border those on it."""
    h, w = fields.shape[3:]
    clip = torch.arange(len(fields), device=fields.device)[:, None]
    flat = fields.permute(0, 2, 3, 4, 1)[clip, frame]  # B S h w C
    weights = hats(place, h, w)
    return torch.einsum("bsc,bscd->bsd", weights, flat.flatten(2, 3))


def hats(place: Float[Tensor, "B S 2"], h: int, w: int) -> Float[Tensor, "B S cells"]:
    """Bilinear weights of places over the cells of a frame."""
    columns, rows = torch.arange(w, device=place.device), torch.arange(h, device=place.device)
    x = F.relu(1 - (place[..., :1].clamp(0, w - 1) - columns).abs())
    y = F.relu(1 - (place[..., 1:].clamp(0, h - 1) - rows).abs())
    return (y[..., :, None] * x[..., None, :]).flatten(2)


def inside(place: Float[Tensor, "B S 2"], h: int, w: int) -> Bool[Tensor, "B S"]:
    """Within the frame, whose cells reach half a cell beyond their centres."""
    x, y = place.unbind(-1)
    return (x > -0.5) & (x < w - 0.5) & (y > -0.5) & (y < h - 0.5)
