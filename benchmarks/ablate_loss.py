"""What each term of the joint loss is worth: the full loss, and each lambda set to zero.

    python -m benchmarks.ablate_loss DATA RUNS [seeds] [tokenizer steps] [generator steps]

DATA is a one-object shape world at 32x32 in which every style occurs (python -m pipelines.prepare
source=shapes source.max_shapes=1 source.camera_fraction=0 source.style_fraction=0.75). One
tokenizer serves all; per variant and seed a denoiser is trained on its latents. A term of weight 0
is computed all the same, so all variants have the same network and the same work per step. Without
the flow term the motion channels are read in training and never learnt to be written; the variant
of still channels tells what they are worth apart from what that mismatch costs. Readings are other
weights and other forms of the terms that seem inert. Tables go to docs/ablation_loss.md:
measurements of samples, which know no lambda.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.ablation import (
    CONTROL_HEADS,
    CONTROLS,
    SPLITS,
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

DOCS = Path(__file__).resolve().parents[1] / "docs" / "ablation_loss.md"
TERMS = ("diffusion", "flow", "attention", "refinement", "style")
COHERENCE = {"EPE": "epe", "temporal residual": "residual", "flicker": "flicker"}
LOOKS = {"reference": "as referred", "no_reference": "no reference"}
SEEN = ("style", "shape", "motion")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A difference from the full loss."""

    name: str
    overrides: Sequence[str] = field(default_factory=list)
    program: str = "pipelines.train"


VARIANTS = (
    Variant(name="full"),
    *(
        Variant(name=f"no {term}", overrides=[f"objective.terms.{term}.weight=0"])
        for term in TERMS[1:]
    ),
    Variant(name="still channels", program="benchmarks.train_still"),
)
READINGS = (
    Variant(
        name="attention 4 times, to the end",
        overrides=["objective.terms.attention.weight=0.2", "objective.terms.attention.decay=0"],
    ),
    Variant(name="attention to what stays, too", overrides=["generator.tracks.still=1"]),
    Variant(name="attention of the cells", overrides=["generator.tracks.heads=0"]),
    Variant(name="style 10 times", overrides=["objective.terms.style.weight=1"]),
    Variant(name="style at all times", overrides=["generator.style.late=0"]),
    Variant(
        name="style by contrast",
        overrides=[
            "generator.style.late=0",
            "objective.terms.style.term._target_=benchmarks.contrast.ContrastTerm",
        ],
    ),
)
GENERATOR = [
    "stage=generator",
    "+term=[attention,refinement,style]",
    "generator.context_frames=0",
    "run.global_batch=8",
    "run.micro_batch=8",
    "optimizer.lr=3e-3",
    "run.gradients_every=100",
]


def main(data: Path, runs: Path, seeds: int, tokenizer_steps: int, steps: int) -> None:
    tokenizer = runs / "tokenizer"
    latents = tokenizer / "latents"

    def write_clips(variant: Variant, seed: int) -> None:
        run = run_of(runs, variant, seed)
        facts = [f"data.path={latents}", f"tokenizer_run={tokenizer}"]
        overrides = [*GENERATOR, *variant.overrides, *facts]
        train(run, seed, steps, *overrides, program=variant.program)
        evaluate(run, data, "guidance=3", "num_clips=96", "style_references=true")

    train(tokenizer, 0, tokenizer_steps, *TOKENIZER, f"data.path={data}")
    encode(data, tokenizer, latents)
    # Seed by seed, so that an ablation that is ended early still compares all variants.
    of_seeds = [(variant, seed) for seed in range(seeds) for variant in VARIANTS]
    of_readings = [(reading, seed) for seed in range(seeds) for reading in READINGS]
    every([*of_seeds, *of_readings], write_clips)
    compared, read_so = (
        {one.name: [run_of(runs, one, seed) for seed in range(seeds)] for one in variants}
        for variants in (VARIANTS, (VARIANTS[0], *READINGS))
    )
    write(compared, read_so, tokenizer_steps, steps)


def run_of(runs: Path, variant: Variant, seed: int) -> Path:
    return runs / f"{named(variant.name)}-{seed}"


def write(
    runs: Mapping[str, Sequence[Path]],
    readings: Mapping[str, Sequence[Path]],
    tokenizer_steps: int,
    steps: int,
) -> None:
    seeds = next(iter(runs.values()))
    first = read(seeds[0])
    chance = ", ".join(f"{name} {first['chance'][name]:.2f}" for name in (*CONTROLS, "style"))
    real = {head: first["motion"]["held-out"]["real"][key] for head, key in COHERENCE.items()}
    known = ", ".join(f"{head} {value['value']:.2f}" for head, value in real.items())
    DOCS.write_text(
        "# The loss, term by term\n\n"
        f"Written by `python -m benchmarks.ablate_loss`: {len(seeds)} seeds, "
        f"one tokenizer of {tokenizer_steps} steps of 16 clips, denoisers of {steps} steps of 8, "
        "16x32x32, one object in any style. Means of the seeds, with the lowest and the highest; "
        f"96 prompts a seed and kind, the same for all. Chance: {chance}. Real clips: {known}.\n\n"
        + tables(runs)
        + "\n## Other readings\n\nOther weights and forms of the terms that seem inert.\n\n"
        + tables(readings)
    )


def tables(runs: Mapping[str, Sequence[Path]]) -> str:
    scores = {name: [read(run) for run in of_seeds] for name, of_seeds in runs.items()}
    looks = ["variant"] + [
        f"{name}{', unseen' if split == SPLITS[1] else ''}, {LOOKS[look]}"
        for split, look, name in product(SPLITS, LOOKS, SEEN)
    ]
    pulls = ["variant", *(f"{name} of {term}" for term in TERMS for name in ("share", "cosine"))]
    return (
        table(
            ["variant", *CONTROL_HEADS, *COHERENCE],
            [[name, *controls(s), *coherence(s)] for name, s in scores.items()],
        )
        + "\nPrompts without the words of their style, with a reference and without:\n\n"
        + table(looks, [[name, *styles(s)] for name, s in scores.items()])
        + "\nThe pull of each term at the trunk: its share of the lengths of all weighted "
        "gradients, and its cosine with that of diffusion, means over the run.\n\n"
        + table(pulls, [[name, *pulled(of_seeds)] for name, of_seeds in runs.items()])
    )


def coherence(scores: Sequence[dict[str, Any]]) -> list[str]:
    found = [one["motion"]["held-out"]["generated"] for one in scores]
    return [spread([one[key]["value"] for one in found], 2) for key in COHERENCE.values()]


def styles(scores: Sequence[dict[str, Any]]) -> list[str]:
    return [
        spread([one["style"][split][look][name]["value"] for one in scores], 2)
        for split, look, name in product(SPLITS, LOOKS, SEEN)
    ]


def pulled(runs: Sequence[Path]) -> list[str]:
    """Per term its share of the pull and its cosine with diffusion."""
    looked = [pull(run) for run in runs]
    cells = []
    for term in TERMS:
        cells.append(spread([one[term][0] for one in looked], 2))
        cells.append(spread([one[term][1] for one in looked], 2))
    return cells


def pull(run: Path) -> dict[str, tuple[float, float]]:
    """Means over the steps that were looked at."""
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if f"gradient/{TERMS[0]}" in row]
    shares: dict[str, list[float]] = {term: [] for term in TERMS}
    divisors = {
        term: statistics.mean(row[f"trivial/{term}"] for row in rows)
        if config["objective"]["terms"][term].get("normalise")
        else 1.0
        for term in TERMS
    }
    for row in rows:
        lengths = {
            term: weight_of(term, config, row) / divisors[term] * row[f"gradient/{term}"]
            for term in TERMS
        }
        for term, length in lengths.items():
            shares[term].append(length / sum(lengths.values()))
    return {
        term: (
            statistics.mean(shares[term]),
            statistics.mean(row.get(f"cosine/{term}", 1.0) for row in rows),
        )
        for term in TERMS
    }


def weight_of(term: str, config: Mapping[str, Any], row: Mapping[str, float]) -> float:
    """What a term is multiplied by, as far as a log line tells."""
    return row.get(f"weight/{term}", config["objective"]["terms"][term]["weight"])


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[3:]]
    seeds, tokenizer, generator = [*numbers, *(3, 3000, 2000)[len(numbers) :]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), seeds, tokenizer, generator)
