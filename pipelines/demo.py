"""The whole road on a small shape world: prepare, tokenizer, generator, generate, evaluate, report.

Each step is one of the other pipelines, and its command line is printed before it runs. Killed half
way, the same command goes on where it was.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hstvg.runtime.command import run_command

DATA, TOKENIZER, RUN = "data/demo", "runs/demo-tokenizer", "runs/demo"


def commands(config: dict[str, Any], prompts: str) -> list[str]:
    """The command lines of the demo, in order, each without `python -m pipelines.`"""
    world = "source.max_shapes=1 source.camera_fraction=0 source.style_fraction=0"
    return [
        f"prepare source=shapes source.num_clips={config['num_clips']} {world} out={DATA}",
        f"train +experiment=demo_tokenizer data.path={DATA} run.name=demo-tokenizer",
        f"train +experiment=demo_generator data.path={DATA} run.name=demo"
        f" tokenizer_run={TOKENIZER}",
        f"generate run={RUN} prompts={prompts} out={RUN}/samples",
        f"evaluate run={RUN} data.path={DATA} out={RUN}/eval",
        f"report run={RUN}",
    ]


def main(config: dict[str, Any]) -> None:
    from hstvg.runtime.errors import CommandError

    start = time.monotonic()
    prompts = Path(RUN) / "prompts.txt"
    for command in commands(config, str(prompts)):
        print(f"\n[{time.monotonic() - start:4.0f} s] python -m pipelines.{command}", flush=True)
        if config["dry_run"]:
            continue
        prompts.parent.mkdir(parents=True, exist_ok=True)
        prompts.write_text("".join(f"{prompt}\n" for prompt in config["prompts"]))
        pipeline, *overrides = command.split()
        code = subprocess.call([sys.executable, "-m", f"pipelines.{pipeline}", *overrides])
        if code:
            raise CommandError(
                f"the demo stopped at {pipeline} (exit {code}); run it again to go on"
            )
    print(f"\n[{time.monotonic() - start:4.0f} s] open {Path(RUN).absolute() / 'report.html'}")
    print(f"         and {Path(RUN).absolute() / 'samples' / '0000.mp4'}")


if __name__ == "__main__":
    run_command("demo", __doc__, main)
