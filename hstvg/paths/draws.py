"""Random numbers that belong to a clip, not to a process.

Every draw of a clip derives from (seed, position in the plan, purpose). Two workers, or one worker
with accumulation, or a resumed run see the same numbers, because none of them is asked who it is.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class Draws:
    """Per-clip draws for the clips at `positions`.

    Args:
        seed: of the run.
        positions: place of each clip in the plan.
        device: where the numbers are wanted; they are drawn on the CPU, so that a run on another
            device sees the same ones.
    """

    def __init__(
        self, seed: int, positions: Sequence[int], device: torch.device, scope: str = ""
    ) -> None:
        self.seed = seed
        self.scope = scope
        self.positions = [int(position) for position in positions]
        self.device = device

    def within(self, scope: str) -> "Draws":
        """Other numbers for the same clips: those of a part of the work."""
        return Draws(self.seed, self.positions, self.device, f"{self.scope}{scope}/")

    def normal(self, purpose: str, *shape: int) -> Float[Tensor, "B *shape"]:
        """Standard normal, `shape` per clip."""
        return self._draw(purpose, lambda generator: torch.randn(shape, generator=generator))

    def uniform(self, purpose: str, *shape: int) -> Float[Tensor, "B *shape"]:
        """Uniform in [0, 1), `shape` per clip."""
        return self._draw(purpose, lambda generator: torch.rand(shape, generator=generator))

    def coins(self, purpose: str, share: float) -> list[bool]:
        """Per clip, True with probability `share`; known to Python, whatever the device."""
        return [
            float(toss) < share
            for toss in self._rows(purpose, lambda g: torch.rand((), generator=g))
        ]

    def _draw(self, purpose: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack(self._rows(purpose, draw)).to(self.device, non_blocking=True)

    def _rows(self, purpose: str, draw: Callable[[torch.Generator], Tensor]) -> list[Tensor]:
        rows = []
        for position in self.positions:
            seed = seed_of(self.seed, position, self.scope + purpose)
            rows.append(draw(torch.Generator().manual_seed(seed)))
        return rows


def seed_of(seed: int, position: int, purpose: str) -> int:
    """The seed of what is drawn for a purpose at a position, 63 bits."""
    digest = hashlib.blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=8)
    return int.from_bytes(digest.digest()) >> 1
