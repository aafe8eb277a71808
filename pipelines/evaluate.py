"""Score a run on held-out clips, with 95 % intervals, baselines and chance.

python -m pipelines.evaluate run=runs/gen data.path=data/mine out=runs/gen/eval
"""

from typing import Any

from hstvg.runtime.command import run_command


def main(config: dict[str, Any]) -> None:
    from hstvg.runtime.evaluation import evaluate

    evaluate(config)


if __name__ == "__main__":
    run_command("evaluate", __doc__, main)
