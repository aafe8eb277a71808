"""pipelines.train, worker=local, of a denoiser to whom all clips seem to stand still.

    python -m benchmarks.train_still stage=generator ...

Its motion channels are there and say nothing: a network of the same size, without what motion
tells. Tracks and refiner know it still. What it leaves is an ordinary run.
"""

from typing import Any

from hstvg.generator.examples import Examples
from hstvg.runtime.command import run_command
from hstvg.types import LatentPyramid
from pipelines import train

moving = Examples._paths


def paths(self: Examples, pyramid: LatentPyramid, *others: Any) -> Any:
    levels = [level.clone() for level in pyramid.levels]
    for level in levels:
        level[:, self.latent_channels :] = 0
    return moving(self, LatentPyramid(levels=tuple(levels)), *others)


if __name__ == "__main__":
    Examples._paths = paths
    run_command("train", __doc__, train.main)
