"""pipelines.train, worker=local, of a denoiser to whom all clips seem to stand still.

    python -m benchmarks.train_still stage=generator ...

Its motion channels are there and say nothing: a network of the same size, without what motion
tells. What it leaves is an ordinary run.
"""

from dataclasses import replace
from typing import Any

import torch

from hstvg.generator.hierarchical import HierarchicalGenerator
from hstvg.runtime.command import run_command
from hstvg.types import LatentBatch
from pipelines import train

moving = HierarchicalGenerator.example


def example(self: HierarchicalGenerator, batch: LatentBatch, *others: Any) -> Any:
    assert batch.motion is not None
    return moving(self, replace(batch, motion=torch.zeros_like(batch.motion)), *others)


if __name__ == "__main__":
    HierarchicalGenerator.example = example
    run_command("train", __doc__, train.main)
