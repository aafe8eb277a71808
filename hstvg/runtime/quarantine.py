"""The quarantine: damaged samples that others stood in for, named, and how many are too many."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from hstvg.runtime.errors import Stopped
from hstvg.runtime.order import keep_until, read_records
from hstvg.train.ports import Substitution

FILE_NAME = "quarantine.jsonl"
ENOUGH = 10_000
"""Clips after which a share of damaged ones means something, where an epoch has as many."""


class Quarantine:
    """quarantine.jsonl of a run, written by rank 0; every rank counts along.

    Args:
        max_fraction: of the clips trained; counted over an epoch, or over `ENOUGH` clips of a long
            one, before so many are trained.
        epoch_clips: in the training split.
        say: is told of every damaged sample.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        max_fraction: float,
        epoch_clips: int,
        rank: int,
        say: Callable[[str], None],
    ) -> None:
        self.file = run_dir / FILE_NAME
        self.max_fraction = max_fraction
        self.least = min(epoch_clips, ENOUGH)
        self.rank = rank
        self.say = say
        self.count = 0

    def begin(self, first_step: int) -> None:
        """Forget the substitutions of steps that are trained again."""
        if self.rank == 0:
            keep_until(self.file, first_step)
        # The others may look before that.
        self.count = sum(record["step"] <= first_step for record in read_records(self.file))

    def add(self, found: Sequence[Substitution], samples: int) -> None:
        """Take down the substitutions of a step of all ranks, the same on each.

        Args:
            samples: clips trained so far.

        Raises:
            Stopped: there are too many.
        """
        self.count += len(found)
        if self.rank == 0 and found:
            with self.file.open("a") as file:
                file.writelines(json.dumps(asdict(item)) + "\n" for item in found)
                file.flush()
                os.fsync(file.fileno())
            for item in found:
                self.say(f"replaced {item.key} by {item.substitute}: {item.reason}")
        if self.count > self.max_fraction * max(samples, self.least):
            first = "; ".join(f"{item.key}: {item.reason}" for item in found[:3])
            raise Stopped(
                f"{self.count} clips could not be read, more than data.max_bad_fraction="
                f"{self.max_fraction:g} allows ({first}); all are in {self.file}; check the data "
                "with python -m pipelines.prepare verify=DIR, or raise data.max_bad_fraction"
            )
