"""ScaleTransformer: reads a text and all coarser scales, and speaks of the next scale.

Proposal VideoAR, next-scale transformer (after arXiv 2404.02905 and 2412.04431). The text is a
prefix; all tokens of one scale are spoken of in parallel; a token sees the prefix, its own scale
and what came before. Rotary positions are those of the final grid, so that cells of different
scales that cover the same place share a phase.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hstvg.generator.blocks import Block
from hstvg.nn.embed import rotary_angles
from hstvg.nn.transformer import Memory, Modulation, Order, TransformerLayer
from hstvg.types import Condition

FLEX_FROM = 2048
"""Tokens on a GPU from which a block-sparse kernel pays for its 128-token blocks."""


@dataclass
class Memories:
    """What has been read so far: keys and values per layer, and which of them are real."""

    layers: list[Memory]
    real: list[Bool[Tensor, "B _M"]] = field(default_factory=list)


class ScaleTransformer(nn.Module):
    """States of the tokens of every block, for a head to read codes or values from.

    Args:
        channels: of the latent.
        kinds: of rung.
        text_width: width of the condition's text tokens.
        width: D.
        depth: layers.
        reads_frames: whether finished latent frames are among its blocks.
        checkpointing: recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        *,
        channels: int,
        kinds: int,
        text_width: int,
        width: int,
        depth: int,
        head_dim: int,
        reads_frames: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.checkpointing = checkpointing
        self.prefix = nn.Linear(text_width, width)
        self.gist = nn.Linear(text_width, width)
        self.start = nn.Linear(text_width, width)
        self.rung = nn.Linear(channels, width)
        self.given = nn.Linear(channels, width) if reads_frames else None
        self.kind = nn.Embedding(kinds, width)
        self.modulation = Modulation(width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, head_dim=head_dim) for _ in range(depth)
        )

    def forward(
        self,
        blocks: Sequence[Block],
        inputs: Sequence[Float[Tensor, "B C _t _h _w"]],
        present: Sequence[Bool[Tensor, "B _t"] | None],
        condition: Condition,
    ) -> list[Float[Tensor, "B _N D"]]:
        """States of each block's tokens, all blocks known.

        Args:
            inputs: per block; of a rung the pooled state before it, zero for the first of a ladder.
            present: per block, which of its frames a clip has; None is all.
        """
        tokens, angles, steps, real = self._prefix(condition)
        gist = self._pool(condition)
        for step, (block, x, there) in enumerate(zip(blocks, inputs, present, strict=True), 1):
            tokens.append(self._embed(block, x, gist))
            angles.append(self._angles(block, x))
            steps.append(torch.full((block.size.volume,), step, device=x.device))
            real.append(_real(block, x, there))
        order = torch.cat(steps)
        mask = self._mask(Order(query=order, key=order, real=torch.cat(real, dim=1)))
        x = self._layers(torch.cat(tokens, dim=1), gist, torch.cat(angles), mask, None)
        sizes = [block.size.volume for block in blocks]
        return list(x[:, -sum(sizes) :].split(sizes, dim=1))

    def begin(self, condition: Condition) -> Memories:
        """Read the text, to go on from with `extend`."""
        memories = Memories(layers=[Memory() for _ in self.layers])
        (x,), (angles,), _, (real,) = self._prefix(condition)
        memories.real.append(real)
        self._layers(x, self._pool(condition), angles, real[:, None, None], memories)
        return memories

    def extend(
        self,
        memories: Memories,
        block: Block,
        x: Float[Tensor, "B C t h w"],
        condition: Condition,
        present: Bool[Tensor, "B t"] | None = None,
        keep: bool = True,
    ) -> Float[Tensor, "B N D"]:
        """States of the next block's tokens.

        Args:
            keep: add them to the memories, for the blocks to come.
        """
        gist = self._pool(condition)
        real = [*memories.real, _real(block, x, present)]
        memories.real = real if keep else memories.real
        for memory in memories.layers:
            memory.keeps = keep
        mask = torch.cat(real, dim=1)[:, None, None]
        tokens = self._embed(block, x, gist)
        return self._layers(tokens, gist, self._angles(block, x), mask, memories)

    def _layers(
        self,
        x: Float[Tensor, "B N D"],
        gist: Float[Tensor, "B E"],
        angles: Float[Tensor, "N half"],
        mask: object,
        memories: Memories | None,
    ) -> Float[Tensor, "B N D"]:
        modulation = self.modulation(self.gist(gist))
        for i, layer in enumerate(self.layers):
            if memories is not None:
                x = layer(x, modulation, angles, mask, memories.layers[i])
            elif self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, modulation, angles, mask, use_reentrant=False)
            else:
                x = layer(x, modulation, angles, mask)
        return x

    def _prefix(
        self, condition: Condition
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Tokens, angles, steps and reality of the text, which has no place in the video."""
        length, device = condition.text.shape[1], condition.text.device
        return (
            [self.prefix(condition.text)],
            [torch.zeros(length, self.head_dim // 2, device=device)],
            [torch.zeros(length, dtype=torch.long, device=device)],
            [condition.text_mask],
        )

    def _pool(self, condition: Condition) -> Float[Tensor, "B E"]:
        """The mean of the text's tokens."""
        mask = condition.text_mask[..., None].to(condition.text.dtype)
        return (condition.text * mask).sum(1) / mask.sum(1)

    def _embed(
        self, block: Block, x: Float[Tensor, "B C t h w"], gist: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B N D"]:
        cells = x.to(gist.dtype).flatten(2).transpose(1, 2)
        if block.rung is None:
            assert self.given is not None, "this transformer was made without given frames"
            return self.given(cells)
        # By the module's own forward: under ZeRO 3 its weights are whole only inside.
        kind = self.kind(torch.tensor(block.rung.kind, device=x.device))
        if block.rung.depth == 0:  # nothing is known yet but the text
            return (self.start(gist)[:, None] + kind).expand(-1, cells.shape[1], -1)
        return self.rung(cells) + kind

    def _angles(self, block: Block, x: Tensor) -> Float[Tensor, "N half"]:
        height, width = self._final(block)
        reference = (block.span, height, width)
        return rotary_angles(block.size, reference, self.head_dim, x.device, start=block.start)

    @staticmethod
    def _final(block: Block) -> tuple[int, int]:
        size = block.size if block.rung is None else block.rung.size
        return size.h, size.w

    def _mask(self, order: Order) -> object:
        if order.key.is_cuda and len(order.key) >= FLEX_FROM:
            return order.blocks()
        return order.dense()


def _real(
    block: Block, x: Float[Tensor, "B C t h w"], present: Bool[Tensor, "B t"] | None
) -> Bool[Tensor, "B N"]:
    if present is None:
        return torch.ones(len(x), block.size.volume, dtype=torch.bool, device=x.device)
    return present.repeat_interleave(block.size.h * block.size.w, dim=1)


class CodeHead(nn.Module):
    """Logits of every channel's code, each channel apart (arXiv 2412.04431)."""

    def __init__(self, width: int, channels: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.leave = nn.Linear(width, channels * levels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, states: Float[Tensor, "B N D"]) -> Float[Tensor, "B C N L"]:
        normed = F.layer_norm(states, states.shape[-1:], eps=1e-6)
        return self.leave(normed).unflatten(-1, (-1, self.levels)).transpose(1, 2)
