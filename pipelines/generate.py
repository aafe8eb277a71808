"""Write videos with a trained generator: prompt -> MP4.

python -m pipelines.generate run=runs/gen prompt="a red circle moves right" seed=0 out=video.mp4
python -m pipelines.generate run=runs/gen prompts=prompts.txt out=videos    # one prompt a line
"""

from typing import Any

from hstvg.runtime.command import run_command


def main(config: dict[str, Any]) -> None:
    from hstvg.runtime.sampling import generate

    generate(config)


if __name__ == "__main__":
    run_command("generate", __doc__, main)
