"""The order of training: a pure function of the data set, the seed and the global batch.

Positions count the clips of a run from 0 without end; epoch e holds positions e n to (e + 1) n - 1
and visits every sample once. Nothing here knows how many workers there are.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Int


class Plan:
    """Which sample stands at which position.

    Args:
        num_samples: samples in the split.
        seed: of the run.
        identity: hash of the index, so that another data set is another order.
    """

    def __init__(self, *, num_samples: int, seed: int, identity: str) -> None:
        if num_samples < 1:
            raise ValueError("a plan needs at least one sample")
        self.num_samples = num_samples
        self.entropy = (seed, int(identity[:16], 16))

    def samples(self, positions: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        """Sample numbers at positions."""
        epochs, places = np.divmod(positions, self.num_samples)
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = _order(self.entropy, int(epoch), self.num_samples)[places[here]]
        return result


@lru_cache(maxsize=4)
def _order(entropy: tuple[int, int], epoch: int, count: int) -> Int[np.ndarray, "N"]:
    return np.random.default_rng((*entropy, epoch)).permutation(count)


def worker_positions(
    step: int, *, global_batch: int, rank: int, world_size: int
) -> Int[np.ndarray, "N"]:
    """Positions that one worker trains at a step (from 0): its run of the global batch."""
    share = global_batch // world_size
    first = step * global_batch + rank * share
    return np.arange(first, first + share)
