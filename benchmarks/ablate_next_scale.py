"""What each choice of the next-scale path is worth: schedule, levels of a code, self-correction.

    python -m benchmarks.ablate_next_scale DATA RUNS [seeds] [tokenizer steps] [generator steps]

DATA is a one-object shape world at 32x32 (python -m pipelines.prepare source=shapes
source.max_shapes=1 source.camera_fraction=0 source.style_fraction=0). Every variant trains a
generator for each seed, and a tokenizer where it differs in that, with the same steps, and is
scored on the same held-out prompts; runs that are there already are not trained again, so a killed
ablation goes on. The table goes to
docs/ablation_next_scale.md: medians of the seeds for decibels, pooled counts with their 95 %
intervals for accuracies.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hstvg.metrics.interval import wilson

DOCS = Path(__file__).resolve().parents[1] / "docs" / "ablation_next_scale.md"
CONTROLS = ("colour", "shape", "motion")
QUANTISER = "+tokenizer.quantiser._target_=hstvg.tokenizer.quantiser."


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A difference from the baseline."""

    name: str
    tokenizer: Sequence[str] = field(default_factory=list)
    generator: Sequence[str] = field(default_factory=list)


VARIANTS = (
    Variant(name="cubic, L = 5, self-correction"),
    Variant(name="space-only", tokenizer=["tokenizer.schedule=space"]),
    Variant(name="per frame", tokenizer=["tokenizer.schedule=frames"]),
    Variant(name="L = 2 (BSQ)", tokenizer=[f"{QUANTISER}BSQ"]),
    Variant(name="L = 3", tokenizer=[f"{QUANTISER}FSQ", "+tokenizer.quantiser.levels=3"]),
    Variant(name="L = 9", tokenizer=[f"{QUANTISER}FSQ", "+tokenizer.quantiser.levels=9"]),
    Variant(name="no self-correction", generator=["generator.corruption=0"]),
    Variant(name="flow head", generator=["generator.head=flow"]),
)
TOKENIZER = [
    "tokenizer.strides=[4,4,4]",
    "tokenizer.patch=[2,2,2]",
    "run.global_batch=16",
    "run.micro_batch=16",
    "optimizer.lr=2e-3",
]
GENERATOR = [
    "stage=generator",
    "generator=next_scale",
    "generator.width=128",
    "generator.depth=4",
    "generator.context_frames=0",
]


def main(data: Path, runs: Path, seeds: int, tokenizer_steps: int, generator_steps: int) -> None:
    rows = []
    for variant in VARIANTS:
        scores = [
            scored(variant, seed, data, runs, tokenizer_steps, generator_steps)
            for seed in range(seeds)
        ]
        rows.append(row(variant, scores))
        print(rows[-1], flush=True)
    write(rows, scores[0], seeds, tokenizer_steps, generator_steps)


def scored(
    variant: Variant, seed: int, data: Path, runs: Path, tokenizer_steps: int, generator_steps: int
) -> Mapping[str, Any]:
    """Train a variant with a seed, unless that is done, and score it."""
    word = "".join(c if c.isalnum() else "-" for c in variant.name)
    codec = "".join(c for c in "".join(variant.tokenizer).rpartition(".")[2] if c.isalnum())
    tokenizer, generator = f"tok-{codec or 'base'}-{seed}", f"gen-{word}-{seed}"
    common = [f"data.path={data}", f"run.root={runs}", f"run.seed={seed}", "worker=local"]
    common += ["engine=torch", "engine.precision=auto", "run.sample_clips=0"]
    common += ["run.checkpoint_every=100000", "run.validate_every=100000", "run.log_every=100"]
    out = runs / generator / "eval" / "metrics.json"
    if not out.is_file():
        call("train", *common, f"run.name={tokenizer}", f"run.steps={tokenizer_steps}",
             *TOKENIZER, *variant.tokenizer)  # fmt: skip
        call("train", *common, f"run.name={generator}", f"run.steps={generator_steps}",
             f"tokenizer_run={runs / tokenizer}", *GENERATOR, *variant.generator)  # fmt: skip
        call("evaluate", f"run={runs / generator}", f"data.path={data}", "guidance=3")
    return json.loads(out.read_text())


def call(pipeline: str, *overrides: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"pipelines.{pipeline}", *overrides]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def row(variant: Variant, scores: Sequence[Mapping[str, Any]]) -> str:
    tokens = sum(level["tokens"] for level in scores[0]["scales"])
    whole = statistics.median(score["tokenizer"]["psnr"]["value"] for score in scores)
    coded = statistics.median(score["scales"][-1]["psnr"]["value"] for score in scores)
    cells = [variant.name, str(tokens), f"{whole:.1f}", f"{coded:.1f}"]
    cells += [pooled(scores, "held-out", control) for control in CONTROLS]
    cells += [pooled(scores, "unseen combinations", control) for control in CONTROLS]
    return f"| {' | '.join(cells)} |"


def pooled(scores: Sequence[Mapping[str, Any]], split: str, control: str) -> str:
    """Right of all seeds together."""
    estimates = [score["control"][split]["generated"][control] for score in scores]
    right = sum(round(estimate["value"] * estimate["n"]) for estimate in estimates)
    estimate = wilson(right, sum(estimate["n"] for estimate in estimates))
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def write(
    rows: Sequence[str], score: Mapping[str, Any], seeds: int, tokenizer: int, generator: int
) -> None:
    chance = ", ".join(f"{name} {score['chance'][name]:.2f}" for name in CONTROLS)
    heads = ["variant", "tokens", "PSNR(z)", "PSNR(z_hat_K)"]
    heads += [f"{control}{place}" for place in ("", ", unseen") for control in CONTROLS]
    DOCS.write_text(
        "# Next-scale, choice by choice\n\n"
        f"Written by `python -m benchmarks.ablate_next_scale`: {seeds} seeds, a tokenizer of "
        f"{tokenizer} steps and a generator of {generator} steps each, 16x32x32, one object. "
        f"Accuracies with 95 % intervals over all seeds; chance: {chance}.\n\n"
        f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[3:]]
    seeds, tokenizer, generator = [*numbers, *(3, 600, 800)[len(numbers) :]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), seeds, tokenizer, generator)
