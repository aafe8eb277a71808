"""Paged levels: those of the U-Net that see across blocks.

What they read of a finished block depends on its latent alone, on no time and on no level of the
pyramid: its keys and values are made once and serve every step of the block after, every level and
every branch of guidance. With each further block the older ones shrink to their summaries.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.generator.history import Earlier, History
from hstvg.generator.scale_transformer import FLEX_FROM
from hstvg.nn.embed import rotary_angles, rotate
from hstvg.nn.norm import ChannelNorm
from hstvg.nn.paged_attention import PagedAttention, Summary, View, page_on, places
from hstvg.nn.reach import BLOCK, CELL, PAGE, TEXT, Reach, Tokens
from hstvg.nn.resample import Down, Factor
from hstvg.scales import Scale
from hstvg.types import Codec, Condition, KeyValues, Recalled

Kind = Literal["local", "regional", "global", "paged"]
"""Of the levels of a U-Net."""


class BlockEncoder(nn.Module):
    """Finished blocks as tokens as wide as a level.

    Args:
        channels: of the latent.
        stride: cells of the latent per cell of the level, in each axis.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.fold = Down(channels, width, Factor(stride, stride, stride))
        self.norm = ChannelNorm(width)
        self.mix = nn.Conv3d(width, width, 1)
        self.page = Summary(width)
        self.block = Summary(width)

    def forward(
        self, frames: Float[Tensor, "B S C t h w"], page: Factor, tail: int
    ) -> Float[Tensor, "B M D"]:
        """The summary of each block, oldest first; then of the last one its pages and the cells of
        its last frames.

        Args:
            tail: frames of the level's grid.
        """
        blocks = frames.flatten(0, 1).to(self.fold.mix.weight.dtype)
        cells = self.mix(F.silu(self.norm(self.fold(blocks))))
        whole = self.block(cells, Factor(*cells.shape[2:])).view(*frames.shape[:2], -1)
        last = cells.unflatten(0, frames.shape[:2])[:, -1]
        end = last[:, :, -tail:].flatten(2).transpose(1, 2)
        return torch.cat([whole, self.page(last, page), end], dim=1)


class PagedLevel(nn.Module):
    """The attention of one U-Net level: a layer per block of its convolutions, and their history.

    Args:
        channels: of the latent, without motion.
        stride: cells of the final grid per cell of the level, at the finest level of the pyramid.
        depth: layers.
        reference: (t, h, w) of the final grid.
        number: among the paged levels of its network.
    """

    def __init__(
        self,
        width: int,
        text_width: int,
        *,
        channels: int,
        stride: int,
        depth: int,
        head_dim: int,
        reference: Sequence[int],
        history: History,
        number: int,
    ) -> None:
        super().__init__()
        self.channels, self.stride, self.head_dim = channels, stride, head_dim
        self.history = history
        self.reference = Scale(*reference)
        self.number = number
        self.encoder = BlockEncoder(channels, width, stride)
        self.layers: Any = nn.ModuleList(  # of PagedAttention
            PagedAttention(width, text_width, head_dim=head_dim) for _ in range(depth)
        )

    def forward(
        self, x: Float[Tensor, "B D t h w"], layer: int, condition: Condition, view: View
    ) -> Float[Tensor, "B D t h w"]:
        past = None
        if condition.history is not None:
            both = condition.history.layers[self.number * len(self.layers) + layer]
            past = both.keys, both.values
        return self.layers[layer](x, condition.text, past, view)

    def recall(self, frames: Float[Tensor, "B S C t h w"]) -> tuple[KeyValues, ...]:
        """What each layer reads of earlier blocks, oldest first, the last of which is the one
        before."""
        page, tail, grid = self._of_the_past(Scale(*frames.shape[3:]))
        tokens = self.encoder(frames, page, tail)
        angles = self._past_angles(frames.shape[1], page, tail, grid, frames.device)
        read = []
        for layer in self.layers:
            keys, values = layer.past(tokens)
            read.append(KeyValues(keys=rotate(keys, angles), values=values))
        return tuple(read)

    def shrunk(self, kept: KeyValues, summaries: slice) -> KeyValues:
        """Summaries of earlier blocks, as they stand once one more block is before."""
        near, far = (
            rotary_angles((1, 1, 1), self.reference, self.head_dim, kept.keys.device, start)
            for start in (0, -self.reference.t)
        )
        keys, values = kept.keys[:, :, summaries], kept.values[:, :, summaries]
        return KeyValues(keys=rotate(keys, (far - near).expand(keys.shape[2], -1)), values=values)

    def view(self, x: Float[Tensor, "B D t h w"], condition: Condition) -> View:
        """What the layers share on the grid of x."""
        size, frames = Scale(*x.shape[2:]), self._frames(x)
        page = page_on(size, max(1, self.history.page // frames))
        cells, pages = places(size, page, self.reference, self.head_dim, x.device)
        reach = self.reach(x, condition, len(pages))
        many = x.is_cuda and len(reach.key) >= FLEX_FROM
        mask = reach.blocks() if many else reach.dense()
        return View(page=page, cells=cells, pages=pages, mask=mask)

    def reach(self, x: Float[Tensor, "B D t h w"], condition: Condition, pages: int) -> Reach:
        """What the cells of x see of text, past, own pages and one another.

        Args:
            pages: summaries of the own block.
        """
        frames = self._frames(x)
        keys, real = [_tokens(TEXT, condition.text.shape[1], x)], [condition.text_mask]
        block = 0
        if condition.history is not None:
            known = condition.history.known
            block = known.shape[1]
            keys.append(self._past_tokens(block, condition.history.size, x))
            last = known[:, -1:].expand(-1, len(keys[-1]) - block)
            real += [known, last]
        own = _cells(Scale(*x.shape[2:]), frames, block, x)
        keys += [_tokens(PAGE, pages, x, block), own]
        real.append(condition.text_mask.new_ones(len(x), pages + len(own)))
        return Reach(
            query=own,
            key=Tokens.join(*keys),
            real=torch.cat(real, dim=1),
            window=self.history.window * frames,
            tail=self.history.tail,
            length=self.reference.t,
        )

    def _frames(self, x: Float[Tensor, "B D t h w"]) -> int:
        """Of the final grid per frame of x."""
        return self.reference.t // x.shape[2]

    def _of_the_past(self, size: Scale) -> tuple[Factor, int, Scale]:
        """Cells per summary of a page, frames of the tail and grid of a finished block."""
        grid = Scale(*(n // self.stride for n in size))
        page = page_on(grid, max(1, self.history.page // self.stride))
        return page, -(-self.history.tail // self.stride), grid

    def _past_tokens(self, blocks: int, size: Scale, like: Tensor) -> Tokens:
        """Of earlier blocks, in the order of `recall`."""
        page, tail, grid = self._of_the_past(size)
        numbers = torch.arange(blocks, device=like.device)
        pages = grid.volume // page.volume
        cells = _cells(grid, self.stride, blocks - 1, like)
        end = slice(-tail * grid.h * grid.w, None)
        return Tokens.join(
            Tokens.of(BLOCK, numbers, torch.zeros_like(numbers)),
            _tokens(PAGE, pages, like, blocks - 1),
            Tokens.of(CELL, cells.block[end], cells.frame[end]),
        )

    def _past_angles(
        self, blocks: int, page: Factor, tail: int, grid: Scale, device: torch.device
    ) -> Float[Tensor, "M half"]:
        """Of the same; the block that is written begins at 0, those before lie below."""
        t, dim = self.reference.t, self.head_dim
        whole = [
            rotary_angles((1, 1, 1), self.reference, dim, device, start=-t * back)
            for back in range(blocks, 0, -1)
        ]
        cells, pages = places(grid, page, self.reference, dim, device, start=-t)
        return torch.cat([*whole, pages, cells[-tail * grid.h * grid.w :]])


class Paging:
    """Makes the paged levels of one network, in the order in which they are asked for.

    Raises:
        ValueError: a block has no such tail.
    """

    def __init__(self, history: History, codec: Codec, text_width: int) -> None:
        history.check(codec.schedule.size.t)
        self.history, self.codec, self.text_width = history, codec, text_width
        self.made = 0

    def level(self, width: int, stride: int, depth: int, head_dim: int) -> PagedLevel:
        """The next one.

        Args:
            stride, depth: as of PagedLevel.
        """
        number, self.made = self.made, self.made + 1
        return PagedLevel(
            width,
            self.text_width,
            channels=self.codec.channels,
            stride=stride,
            depth=depth,
            head_dim=head_dim,
            reference=self.codec.schedule.size,
            history=self.history,
            number=number,
        )


def check_kinds(kinds: Sequence[str], widths: int, paging: Paging | None) -> None:
    """Raises ValueError where a kind is unknown or not every width has one, and where there is
    history and no level that reads it, or the reverse."""
    known = get_args(Kind)
    if len(kinds) != widths or not set(kinds) <= set(known):
        raise ValueError(
            f"kinds {list(kinds)}: name one of {', '.join(known)} for each of {widths} widths"
        )
    if ("paged" in kinds) != (paging is not None):
        raise ValueError(
            f"kinds {list(kinds)}: a paged level and history need each other; "
            'set +history=paged and "paged" for one of model.unet.kinds, or neither'
        )


def paged_levels(network: nn.Module) -> list[PagedLevel]:
    """Those of a network, in their order."""
    return [module for module in network.modules() if isinstance(module, PagedLevel)]


def recall(network: nn.Module, earlier: Earlier) -> Recalled:
    """What a network reads of the blocks before those that it learns."""
    levels = paged_levels(network)
    return Recalled(
        layers=tuple(read for level in levels for read in level.recall(earlier.frames)),
        size=Scale(*earlier.frames.shape[3:]),
        known=earlier.known,
        noise=earlier.noise,
    )


@torch.no_grad()
def remember(
    network: nn.Module, before: Recalled | None, z: Float[Tensor, "B C t h w"]
) -> Recalled:
    """What a network knows of a video once one more block is finished.

    Of what it knew before, the summaries stay; nothing is read again. The block is said to be as
    noisy as those of training are on average: a generated one is not to be trusted as a clip's own.

    Args:
        before: None at the first block.
        z: its latent; motion channels, which may come last, are not looked at.
    """
    levels = paged_levels(network)
    history, channels = levels[0].history, levels[0].channels
    known = torch.ones(len(z), 1, dtype=torch.bool, device=z.device)
    new = recall(
        network,
        Earlier(
            frames=z[:, None, :channels],
            known=known,
            noise=z.new_full((len(z),), history.noise / 2),
        ),
    )
    if before is None:
        return new
    blocks = before.known.shape[1]
    summaries = slice(max(0, blocks + 1 - history.blocks), blocks)
    layers, depth = [], len(levels[0].layers)
    for number, (old, fresh) in enumerate(zip(before.layers, new.layers, strict=True)):
        kept = levels[number // depth].shrunk(old, summaries)
        layers.append(
            KeyValues(
                keys=torch.cat([kept.keys, fresh.keys], dim=2),
                values=torch.cat([kept.values, fresh.values], dim=2),
            )
        )
    return Recalled(
        layers=tuple(layers),
        size=new.size,
        known=torch.cat([before.known[:, summaries], known], dim=1),
        noise=new.noise,
    )


def repeated(past: Recalled, count: int) -> Recalled:
    """Of every clip `count` times in a row."""

    def again(rows: Tensor) -> Tensor:
        return rows.repeat_interleave(count, dim=0)

    layers = (KeyValues(keys=again(each.keys), values=again(each.values)) for each in past.layers)
    return replace(past, layers=tuple(layers), known=again(past.known), noise=again(past.noise))


def _tokens(kind: int, count: int, like: Tensor, block: int = 0) -> Tokens:
    """Tokens of one kind in one block, all at its first frame."""
    zeros = torch.zeros(count, dtype=torch.long, device=like.device)
    return Tokens.of(kind, zeros + block, zeros)


def _cells(size: Scale, frames: int, block: int, like: Tensor) -> Tokens:
    """The cells of a grid whose frames cover so many of the final grid each."""
    frame = (torch.arange(size.t, device=like.device) + 1) * frames - 1
    frame = frame.repeat_interleave(size.h * size.w)
    return Tokens.of(CELL, torch.full_like(frame, block), frame)
