"""What ablations have in common: the same training again and again, one choice made otherwise.

Variants run side by side, a process per core. What is there already is not made again, so a killed
ablation goes on where it was.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

CONTROLS = ("colour", "shape", "motion")
SPLITS = ("held-out", "unseen combinations")
ALONE = [
    "worker=local",
    "engine=torch",
    "engine.precision=auto",
    "run.sample_clips=0",
    "run.checkpoint_every=100000",
    "run.validate_every=100000",
]
"""A training in one process that leaves nothing but its end."""

TOKENIZER = [
    "tokenizer.strides=[4,4,4]",
    "tokenizer.patch=[2,2,2]",
    "run.global_batch=16",
    "run.micro_batch=16",
    "optimizer.lr=2e-3",
]
"""A tokenizer of clips of 32x32, whose training takes two minutes per 600 steps."""


def every(pairs: Iterable[tuple[Any, int]], work: Callable[[Any, int], None]) -> None:
    """A process per core, since each computes with one thread."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for future in [pool.submit(work, *pair) for pair in pairs]:
            future.result()


def train(
    run: Path, seed: int, steps: int, *overrides: str, program: str = "pipelines.train"
) -> None:
    if not (run / "export").is_dir():
        facts = [f"run.root={run.parent}", f"run.name={run.name}"]
        call(program, *ALONE, *overrides, *facts, f"run.seed={seed}", f"run.steps={steps}")


def encode(data: Path, tokenizer: Path, latents: Path) -> None:
    if not (latents / "dataset.json").is_file():
        facts = [f"source.path={data}", f"source.tokenizer_run={tokenizer}", f"out={latents}"]
        call("pipelines.prepare", "source=latents", *facts)


def evaluate(run: Path, data: Path, *overrides: str) -> None:
    if not scores_of(run).is_file():
        call("pipelines.evaluate", f"run={run}", f"data.path={data}", *overrides)


def scores_of(run: Path) -> Path:
    return run / "eval" / "metrics.json"


def read(run: Path) -> dict[str, Any]:
    return json.loads(scores_of(run).read_text())


def call(program: str, *overrides: str) -> None:
    print(program, *overrides, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", program, *overrides]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def named(word: str) -> str:
    """A name of a variant as that of a folder."""
    return "".join(c if c.isalnum() else "-" for c in word)


def controls(scores: Sequence[dict[str, Any]]) -> list[str]:
    """Accuracies of the seeds' samples, of either split."""
    return [
        spread([one["control"][split]["generated"][control]["value"] for one in scores], 2)
        for split, control in product(SPLITS, CONTROLS)
    ]


CONTROL_HEADS = [
    f"{control}{place}" for place, control in product(("", ", unseen"), CONTROLS)
]  # fmt: skip


def spread(values: Sequence[float], digits: int) -> str:
    """The mean of the seeds, and the lowest and the highest of them; the value of one alone."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, high = min(values), max(values)
    return f"{statistics.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
