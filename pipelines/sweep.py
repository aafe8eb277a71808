"""Search loss weights with Ray Tune; every trial is a real training run.

python -m pipelines.sweep data.path=data/mine tokenizer_run=runs/tok run.name=sweep
"""

import sys
from typing import Any

from hstvg.runtime.command import run_command


def main(config: dict[str, Any]) -> None:
    from hstvg.runtime.sweep import sweep

    sweep(config, sys.argv[1:])


if __name__ == "__main__":
    run_command("sweep", __doc__, main)
