"""What each choice of the next-scale path is worth: schedule, levels of a code, self-correction.

    python -m benchmarks.ablate_next_scale DATA RUNS [seeds] [tokenizer steps] [generator steps]

DATA is a one-object shape world at 32x32 (python -m pipelines.prepare source=shapes
source.max_shapes=1 source.camera_fraction=0 source.style_fraction=0). Every variant trains a
generator for each seed, and a tokenizer where it differs in that, with the same steps, and is
scored on the same held-out prompts; a process per core. What is there already is not made again, so
a killed ablation goes on. The table goes to docs/ablation_next_scale.md: the mean of the seeds, and
the lowest and highest of them.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs" / "ablation_next_scale.md"
CONTROLS = ("colour", "shape", "motion")
QUANTISER = "+tokenizer.quantiser._target_=hstvg.tokenizer.quantiser."


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A difference from the baseline."""

    name: str
    codec: str = "base"
    """Names the tokenizer."""
    tokenizer: Sequence[str] = field(default_factory=list)
    generator: Sequence[str] = field(default_factory=list)


VARIANTS = (
    Variant(name="cubic, L = 5, self-correction"),
    Variant(name="space-only", codec="space", tokenizer=["tokenizer.schedule=space"]),
    Variant(name="per frame", codec="frames", tokenizer=["tokenizer.schedule=frames"]),
    Variant(name="L = 2 (BSQ)", codec="bsq", tokenizer=[f"{QUANTISER}BSQ"]),
    Variant(
        name="L = 9",
        codec="fsq9",
        tokenizer=[f"{QUANTISER}FSQ", "+tokenizer.quantiser.levels=9"],
    ),
    Variant(name="no self-correction", generator=["generator.corruption=0"]),
)
COMMON = [
    "worker=local",
    "engine=torch",
    "engine.precision=auto",
    "run.sample_clips=0",
    "run.checkpoint_every=100000",
    "run.validate_every=100000",
    "run.log_every=100",
]
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
    "generator.head_dim=64",
    "generator.context_frames=0",
    "run.global_batch=8",
    "run.micro_batch=8",
    "optimizer.lr=3e-3",
]


def main(data: Path, runs: Path, seeds: int, tokenizer_steps: int, generator_steps: int) -> None:
    codecs = {variant.codec: variant for variant in VARIANTS}
    every(
        product(codecs.values(), range(seeds)),
        lambda variant, seed: write_codes(variant, seed, data, runs, tokenizer_steps),
    )
    every(
        product(VARIANTS, range(seeds)),
        lambda variant, seed: score(variant, seed, data, runs, generator_steps),
    )
    scores = {
        variant.name: [read(runs, variant, seed) for seed in range(seeds)] for variant in VARIANTS
    }
    write(scores, seeds, tokenizer_steps, generator_steps)


def every(pairs: Iterable[tuple[Variant, int]], work: Callable[[Variant, int], None]) -> None:
    """A process per core, since each computes with one thread."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for future in [pool.submit(work, *pair) for pair in pairs]:
            future.result()


def write_codes(variant: Variant, seed: int, data: Path, runs: Path, steps: int) -> None:
    """Train a tokenizer and encode the clips by it."""
    run = tokenizer_of(runs, variant, seed)
    if not (run / "export").is_dir():
        call("train", *COMMON, *TOKENIZER, *variant.tokenizer, f"data.path={data}", *named(run),
             f"run.seed={seed}", f"run.steps={steps}")  # fmt: skip
    latents = run / "latents"
    if not (latents / "dataset.json").is_file():
        call("prepare", "source=latents", f"source.path={data}", f"source.tokenizer_run={run}",
             f"out={latents}")  # fmt: skip


def score(variant: Variant, seed: int, data: Path, runs: Path, steps: int) -> None:
    """Train a generator and evaluate it."""
    run, tokenizer = generator_of(runs, variant, seed), tokenizer_of(runs, variant, seed)
    if not (run / "export").is_dir():
        call("train", *COMMON, *GENERATOR, *variant.generator, f"data.path={tokenizer / 'latents'}",
             f"tokenizer_run={tokenizer}", *named(run), f"run.seed={seed}",
             f"run.steps={steps}")  # fmt: skip
    if not (run / "eval" / "metrics.json").is_file():
        call("evaluate", f"run={run}", f"data.path={data}", "guidance=3", "num_clips=96")


def tokenizer_of(runs: Path, variant: Variant, seed: int) -> Path:
    return runs / f"tok-{variant.codec}-{seed}"


def generator_of(runs: Path, variant: Variant, seed: int) -> Path:
    word = "".join(c if c.isalnum() else "-" for c in variant.name)
    return runs / f"gen-{word}-{seed}"


def named(run: Path) -> list[str]:
    return [f"run.root={run.parent}", f"run.name={run.name}"]


def call(pipeline: str, *overrides: str) -> None:
    print(pipeline, *overrides, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"pipelines.{pipeline}", *overrides]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def read(runs: Path, variant: Variant, seed: int) -> Mapping[str, Any]:
    return json.loads((generator_of(runs, variant, seed) / "eval" / "metrics.json").read_text())


def write(
    scores: Mapping[str, Sequence[Mapping[str, Any]]], seeds: int, tokenizer: int, generator: int
) -> None:
    first = next(iter(scores.values()))[0]
    chance = ", ".join(f"{name} {first['chance'][name]:.2f}" for name in CONTROLS)
    heads = ["variant", "tokens", "PSNR(z)", "PSNR(z_hat_K)"]
    heads += [f"{control}{place}" for place in ("", ", unseen") for control in CONTROLS]
    lines = [f"| {' | '.join([name, *cells(of_seeds)])} |" for name, of_seeds in scores.items()]
    DOCS.write_text(
        "# Next-scale, choice by choice\n\n"
        f"Written by `python -m benchmarks.ablate_next_scale`: {seeds} seeds, a tokenizer of "
        f"{tokenizer} steps of 16 clips and a generator of {generator} steps of 8 each, 16x32x32, "
        "one object. Means of the seeds, with the lowest and the highest of them; 96 prompts a "
        f"seed and kind, the same for all. Chance: {chance}.\n\n"
        f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n" + "\n".join(lines) + "\n"
    )


def cells(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    tokens = sum(level["tokens"] for level in scores[0]["scales"])
    found = [str(tokens)]
    found += [spread([one["tokenizer"]["psnr"]["value"] for one in scores], 1)]
    found += [spread([one["scales"][-1]["psnr"]["value"] for one in scores], 1)]
    for split, control in product(("held-out", "unseen combinations"), CONTROLS):
        values = [one["control"][split]["generated"][control]["value"] for one in scores]
        found.append(spread(values, 2))
    return found


def spread(values: Sequence[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[3:]]
    seeds, tokenizer, generator = [*numbers, *(3, 600, 2000)[len(numbers) :]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), seeds, tokenizer, generator)
