"""Train one stage: stage=tokenizer on a data set, then stage=generator on the trained tokenizer.

    python -m pipelines.train stage=tokenizer data.path=data/mine run.name=tok run.steps=2000
    python -m pipelines.train stage=generator data.path=data/mine run.name=gen \\
        tokenizer_run=runs/tok

Run the same command again to go on from the last checkpoint, on any number of workers. dry_run=true
only prints sizes. run.log_samples=true writes down the order of samples, and

    python -m pipelines.train audit=runs/gen

proves from it that every sample of the plan was trained exactly once.
"""

import sys
from pathlib import Path
from typing import Any

from hstvg.runtime.command import run_command


def main(config: dict[str, Any]) -> None:
    if config["audit"]:
        from hstvg.runtime.order import audit

        print(audit(Path(config["audit"])))
        return
    from hstvg.runtime.launch import run_training

    run_training(config, sys.argv[1:])


if __name__ == "__main__":
    run_command("train", __doc__, main)
