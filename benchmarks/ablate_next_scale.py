"""What each choice of the next-scale path is worth: schedule, levels of a code, self-correction.

    python -m benchmarks.ablate_next_scale DATA RUNS [seeds] [tokenizer steps] [generator steps]

DATA is a one-object shape world at 32x32 (python -m pipelines.prepare source=shapes
source.max_shapes=1 source.camera_fraction=0 source.style_fraction=0). Every variant trains a
generator for each seed, and a tokenizer where it differs in that, with the same steps, and is
scored on the same held-out prompts; a process per core. What is there already is not made again, so
a killed ablation goes on. The table goes to docs/ablation_next_scale.md: the mean of the seeds, and
the lowest and highest of them.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.ablation import (
    CONTROL_HEADS,
    CONTROLS,
    TOKENIZER,
    controls,
    encode,
    evaluate,
    every,
    named,
    read,
    spread,
    table,
    train,
)

DOCS = Path(__file__).resolve().parents[1] / "docs" / "ablation_next_scale.md"
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
    Variant(name="no self-correction", generator=["generator.corruption=0"]),
)
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
    def write_codes(variant: Variant, seed: int) -> None:
        run = tokenizer_of(runs, variant, seed)
        train(run, seed, tokenizer_steps, *TOKENIZER, *variant.tokenizer, f"data.path={data}")
        encode(data, run, run / "latents")

    def write_clips(variant: Variant, seed: int) -> None:
        run, tokenizer = generator_of(runs, variant, seed), tokenizer_of(runs, variant, seed)
        facts = [f"data.path={tokenizer / 'latents'}", f"tokenizer_run={tokenizer}"]
        train(run, seed, generator_steps, *GENERATOR, *variant.generator, *facts)
        evaluate(run, data, "guidance=3", "num_clips=96")

    codecs = {variant.codec: variant for variant in VARIANTS}
    every(product(codecs.values(), range(seeds)), write_codes)
    every(product(VARIANTS, range(seeds)), write_clips)
    scores = {
        variant.name: [read(generator_of(runs, variant, seed)) for seed in range(seeds)]
        for variant in VARIANTS
    }
    write(scores, seeds, tokenizer_steps, generator_steps)


def tokenizer_of(runs: Path, variant: Variant, seed: int) -> Path:
    return runs / f"tok-{variant.codec}-{seed}"


def generator_of(runs: Path, variant: Variant, seed: int) -> Path:
    return runs / f"gen-{named(variant.name)}-{seed}"


def write(
    scores: Mapping[str, Sequence[dict[str, Any]]], seeds: int, tokenizer: int, generator: int
) -> None:
    first = next(iter(scores.values()))[0]
    chance = ", ".join(f"{name} {first['chance'][name]:.2f}" for name in CONTROLS)
    heads = ["variant", "tokens", "PSNR(z)", "PSNR(z_hat_K)", *CONTROL_HEADS]
    DOCS.write_text(
        "# Next-scale, choice by choice\n\n"
        f"Written by `python -m benchmarks.ablate_next_scale`: {seeds} seeds, a tokenizer of "
        f"{tokenizer} steps of 16 clips and a generator of {generator} steps of 8 each, 16x32x32, "
        "one object. Means of the seeds, with the lowest and the highest of them; 96 prompts a "
        f"seed and kind, the same for all. Chance: {chance}.\n\n"
        + table(heads, [[name, *cells(of_seeds)] for name, of_seeds in scores.items()])
    )


def cells(scores: Sequence[dict[str, Any]]) -> list[str]:
    return [
        str(sum(level["tokens"] for level in scores[0]["scales"])),
        spread([one["tokenizer"]["psnr"]["value"] for one in scores], 1),
        spread([one["scales"][-1]["psnr"]["value"] for one in scores], 1),
        *controls(scores),
    ]


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[3:]]
    seeds, tokenizer, generator = [*numbers, *(3, 600, 2000)[len(numbers) :]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), seeds, tokenizer, generator)
