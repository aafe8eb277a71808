"""Layouts: a denoiser is told which objects a clip shows, and where they are at every moment.

Proposal Hierarchical Video Generation, Dynamic Scene Syntax as a condition. Boxes and labels speak
on two paths: painted on the grid of x, near over far, and as one token per object (arXiv
2301.07093). Heads of their own learn to look for every object in its box, which L_attention asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hstvg.generator.cue import Cue
from hstvg.nn.attention import Heads
from hstvg.nn.conv import zero_init
from hstvg.nn.norm import ChannelNorm
from hstvg.paths.draws import Draws
from hstvg.scales import Scale, pool
from hstvg.scene.raster import raster
from hstvg.scene.text import TextEncoder
from hstvg.types import Condition, Layout, Objects, Pair

MOMENTS = 4
"""Evenly spread over a block, at which a token says where its box is."""
FREQUENCIES = 4
"""Of the Fourier features of a coordinate: pi, 2 pi, 4 pi .. per frame."""


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """What a config says of them.

    Args:
        channels: of what is painted, one of them that anything is there.
        width: of a token.
        dropout: share of clips trained without their layout, as most prompts come.
    """

    channels: int = 8
    width: int = 32
    dropout: float = 0.5

    def draw(self, layout: Layout | None, text: TextEncoder, draws: Draws) -> "ToldLayout":
        """The layouts of a batch, without those that are dropped.

        Raises:
            ValueError: the clips came without any.
        """
        if layout is None:
            raise ValueError("this generator is told where objects are; set data.layout=true")
        kept = draws.uniform("layout_dropout") >= self.dropout
        return read_labels(replace(layout, present=layout.present & kept[:, None]), text)


@dataclass(frozen=True, kw_only=True)
class ToldLayout:
    """A layout whose labels are read but not encoded yet."""

    layout: Layout
    ids: Int[Tensor, "U L"]
    """Tokens of every label that occurs."""
    mask: Bool[Tensor, "U L"]
    which: Int[Tensor, "B O"]
    """The label of each object."""

    def objects(self, text: TextEncoder) -> Objects:
        """With what the labels mean, as the text encoder has it: the means of their tokens."""
        states = text(self.ids, self.mask)
        mask = self.mask[..., None].to(states.dtype)
        meanings = (states * mask).sum(1) / mask.sum(1)
        return Objects(layout=self.layout, meaning=meanings[self.which])


def read_labels(layout: Layout, text: TextEncoder) -> ToldLayout:
    words = sorted({label for labels in layout.labels for label in labels})
    which = [[words.index(label) for label in labels] for labels in layout.labels]
    device = layout.boxes.device
    ids, mask = (part.to(device) for part in text.tokenize(words))
    return ToldLayout(
        layout=layout, ids=ids, mask=mask, which=torch.tensor(which, device=device).long()
    )


class LayoutCue(Cue):
    """Objects as paint and as tokens; a clip without any is told nothing.

    Args:
        text_width: of what a label means.
    """

    def __init__(self, settings: Layouts, text_width: int) -> None:
        super().__init__()
        self.channels, self.token_width = settings.channels, settings.width
        seen = MOMENTS * 4 * 2 * FREQUENCIES + text_width
        self.colour = nn.Linear(text_width, settings.channels - 1, bias=False)
        self.read = nn.Sequential(
            nn.Linear(seen, 2 * settings.width),
            nn.SiLU(),
            nn.Linear(2 * settings.width, settings.width),
        )

    def beside(
        self, x: Float[Tensor, "B C t h w"], condition: Condition
    ) -> Float[Tensor, "B Cb t h w"]:
        objects = condition.objects
        if objects is None:
            return x.new_zeros(len(x), self.channels, *x.shape[2:])
        cover = raster(objects.layout, (x.shape[3], x.shape[4]))
        visible = near_over_far(pool(cover, Scale(*x.shape[2:])).to(objects.meaning.dtype))
        paint = torch.einsum("bothw,boc->bcthw", visible, self.colour(objects.meaning))
        return torch.cat([paint, visible.sum(1, keepdim=True)], dim=1).to(x)

    def tokens(
        self, signal: Float[Tensor, "B D"], condition: Condition
    ) -> Float[Tensor, "B N E"] | None:
        objects = condition.objects
        if objects is None:  # one that says nothing, since attention needs something to read
            return signal.new_zeros(len(signal), 1, self.token_width)
        boxes = fourier(at_moments(objects.layout.boxes)).flatten(2).to(signal.dtype)
        tokens = self.read(torch.cat([boxes, objects.meaning.to(signal.dtype)], dim=-1))
        return tokens * objects.layout.present[..., None]


def near_over_far(cover: Float[Tensor, "B O t h w"]) -> Float[Tensor, "B O t h w"]:
    """What is visible of each object, of which the later are the nearer."""
    behind = (1 - cover).flip(1).cumprod(1).flip(1)[:, 1:]  # share that nothing nearer covers
    return cover * F.pad(behind, (0,) * 7 + (1,), value=1.0)


def at_moments(boxes: Float[Tensor, "B O t 4"]) -> Float[Tensor, "B O moments 4"]:
    """Boxes at MOMENTS times, evenly spread from the first frame to the last."""
    flat = boxes.flatten(0, 1).transpose(1, 2)
    read = F.interpolate(flat, MOMENTS, mode="linear", align_corners=True)
    return read.transpose(1, 2).unflatten(0, boxes.shape[:2])


def fourier(x: Float[Tensor, "*B N"]) -> Float[Tensor, "*B N F"]:
    octaves = torch.pi * 2.0 ** torch.arange(FREQUENCIES, device=x.device)
    angles = x[..., None] * octaves
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Grounding(nn.Module):
    """Attention from every cell to the objects by one head, which gives nothing at first.

    Its rows, read the other way, say where each object is taken to be.
    """

    def __init__(self, width: int, token_width: int, *, head_dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.heads = Heads(width, token_width, head_dim, inner=head_dim)
        self.leave = zero_init(nn.Linear(head_dim, width, bias=False))

    def forward(
        self, x: Float[Tensor, "B D t h w"], tokens: Float[Tensor, "B O E"]
    ) -> tuple[Float[Tensor, "B D t h w"], Float[Tensor, "B O t cells"]]:
        """The cells, and per object and frame the log probability of each cell."""
        q, k, v = self.heads(self.norm(x).flatten(2).transpose(1, 2), tokens)
        logits = (k.float() @ q.float().transpose(2, 3))[:, 0] * q.shape[-1] ** -0.5  # B O cells
        mixed = logits.softmax(1).to(v.dtype).transpose(1, 2) @ v[:, 0]
        out = x + self.leave(mixed).transpose(1, 2).reshape(x.shape)
        return out, logits.unflatten(2, (x.shape[2], -1)).log_softmax(-1)


def pair_boxes(
    logs: Float[Tensor, "Bn O t cells"],
    layout: Layout,
    tau: Float[Tensor, "Bn"],
    size: Sequence[int],
) -> Pair:
    """Where each object is taken to be beside its box, n rows of logs for each clip.

    Weighed by tau, too: of a clip that is noise still, nobody can say where things are.

    Args:
        size: (t, h, w) of the grid.
    """
    count = len(logs) // len(layout.boxes)
    cover = pool(raster(layout, (size[1], size[2])), Scale(*size)).flatten(3)
    mass = cover.sum(-1, keepdim=True)  # 0 where it is off screen, or not at all
    where = (cover / mass.clamp_min(1e-6))[:, None].expand(-1, count, -1, -1, -1)
    seen = (mass > 0).to(cover)[:, None]
    return Pair(
        guess=logs.unflatten(0, (-1, count)),
        target=where,
        weight=tau.view(-1, count, 1, 1, 1) * seen,
    )
