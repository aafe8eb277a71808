"""History: what a block of a long video knows of the blocks before it.

In training a clip may be several blocks long: one of them is learnt, those before it are its
history. At sampling these are generated ones, so in training they are noisy, by an amount that a
denoiser is told (diffusion forcing, arXiv 2407.01392).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hstvg.generator.context import spoil
from hstvg.generator.cue import Amount, Cue
from hstvg.generator.ranges import check_ranges
from hstvg.paths.draws import Draws
from hstvg.types import Condition, LatentBatch


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The blocks before those that are learnt."""

    frames: Float[Tensor, "B S C t h w"]
    """Oldest first, with noise on them; 0 where a clip has none."""
    known: Bool[Tensor, "B S"]
    """False there."""
    noise: Float[Tensor, "B"]
    """Deviation of the noise; 0 where a clip has no block before."""


@dataclass(frozen=True, kw_only=True)
class History:
    """How far back a block sees, and how; what a config says of it.

    Args:
        blocks: most that are remembered, by a summary each.
        tail: last latent frames of the block before that are seen cell by cell.
        page: latent frames that are summed up together, of the block before and of the own.
        window: frames to either side, of the grid that attends, that a cell sees cell by cell.
        noise: largest deviation of the noise on history in training; latents have deviation 1.

    Raises:
        ValueError: a number is out of its range.
    """

    blocks: int = 4
    tail: int = 2
    page: int = 4
    window: int = 4
    noise: float = 0.1

    def __post_init__(self) -> None:
        wrong = {name: getattr(self, name) < 1 for name in ("blocks", "tail", "page", "window")}
        wrong["noise"] = not 0 <= self.noise <= 1
        check_ranges(self, wrong, group="history.")

    def check(self, length: int) -> None:
        """Raises ValueError where a block of `length` latent frames has no such tail."""
        if self.tail > length:
            raise ValueError(f"history.tail={self.tail}: a block has {length} latent frames")

    def cut(self, batch: LatentBatch, length: int, draws: Draws) -> tuple[LatentBatch, Earlier]:
        """One block of each clip, any of its blocks alike likely, and those before it.

        Args:
            length: latent frames of a block.

        Raises:
            ValueError: the clips are no whole blocks.
        """
        total = batch.latent.shape[2]
        count, rest = divmod(total, length)
        if rest:
            raise ValueError(
                f"clips of {total} latent frames are no whole number of blocks of {length}; "
                "set data.buckets to whole ones or leave out history"
            )
        number = (draws.uniform("history/block") * count).long()
        return self._block(batch, count, number), self._earlier(batch, count, number, draws)

    @staticmethod
    def _block(batch: LatentBatch, count: int, number: Int[Tensor, "B"]) -> LatentBatch:
        """All of a batch that has a time axis, at the block of each clip."""

        def at(values: Tensor) -> Tensor:
            return pick(values, count, number[:, None])[:, 0]

        parts = {"latent": at(batch.latent)}
        if batch.motion is not None and batch.motion_confidence is not None:
            parts |= {
                "motion": at(batch.motion),
                "motion_confidence": at(batch.motion_confidence),
            }
        layout = batch.layout and replace(batch.layout, boxes=at(batch.layout.boxes))
        return replace(batch, **parts, layout=layout)

    def _earlier(
        self, batch: LatentBatch, count: int, number: Int[Tensor, "B"], draws: Draws
    ) -> Earlier:
        z = batch.latent
        # One at least: the weights that read history take part in every step.
        slots = max(1, min(self.blocks, count - 1))
        index = number[:, None] - slots + torch.arange(slots, device=z.device)
        known = index >= 0
        blocks = pick(z, count, index.clamp_min(0))
        frames, noise = spoil(blocks, self.noise, draws, "history")
        return Earlier(
            frames=frames * known[:, :, None, None, None, None],
            known=known,
            noise=noise * known.any(1),
        )


class HistoryCue(Cue):
    """How noisy the blocks before are; what they show is read by the paged levels themselves.

    Args:
        width: of the signal.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.noise = Amount(width)

    def signal(
        self, signal: Float[Tensor, "B D"], condition: Condition
    ) -> Float[Tensor, "B D"] | None:
        return self.noise(condition.history.noise if condition.history else None, signal)


def pick(
    values: Float[Tensor, "B C T *space"], count: int, index: Int[Tensor, "B S"]
) -> Float[Tensor, "B S C t *space"]:
    """Of clips of `count` blocks those of the given numbers."""
    blocks = values.unflatten(2, (count, -1)).movedim(2, 1)
    return blocks[torch.arange(len(values), device=index.device)[:, None], index]
