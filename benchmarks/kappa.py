"""Who should write how many scales: one joint run, sampled at every kappa, at equal cost.

    python -m benchmarks.kappa RUN DATA [clips] [evaluations]

RUN is of generator=joint, DATA what its scores are taken on. Two tables: at equally many
evaluations, and in the seconds that the transformer needs for all scales, which has no steps to
choose. An evaluation is a pass of a network over a guided batch: of the transformer one for the
text and one per scale that it writes, of the denoiser one per step. The denoiser gets what is left,
dealt evenly to the levels that are left. Seconds are those of sampling alone, on this machine, per
clip.
"""

import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def main(run: Path, data: Path, clips: int, evaluations: int) -> None:
    from hstvg.runtime.assemble import open_run

    model: Any = open_run(run)
    kappas = model.generator.kappas
    print(f"At most {evaluations} evaluations:\n")
    equal = {kappa: steps_in(model, kappa, evaluations) for kappa in kappas}
    write(run, data, model, clips, equal)
    budget = seconds(model, kappas[-1], 1)
    print(f"\nIn the {budget:.3f} s per clip of the transformer alone:\n")
    quick = {kappa: steps_within(model, kappa, budget) for kappa in kappas}
    write(run, data, model, clips, {kappa: steps for kappa, steps in quick.items() if steps})


def write(run: Path, data: Path, model: Any, clips: int, steps_of: Mapping[int, int]) -> None:
    """A row per kappa, with its steps per level."""
    from hstvg.runtime.config import compose
    from hstvg.runtime.evaluation import evaluate

    for row, (kappa, steps) in enumerate(steps_of.items()):
        out = run / "eval" / f"kappa_{kappa}_steps_{steps}"
        facts = [f"run={run}", f"data.path={data}", f"out={out}", f"kappa={kappa}"]
        facts += [f"steps={steps}", f"num_clips={clips}", "guidance=3"]
        with redirect_stdout(sys.stderr):
            scores = evaluate(compose("evaluate", facts))
        passes = passes_before(kappa) + levels_left(model.generator, kappa) * steps
        found = {
            "kappa": str(kappa),
            "evaluations": str(passes),
            "s per clip": f"{seconds(model, kappa, steps):.3f}",
            **values(scores),
        }
        if row == 0:
            print("| " + " | ".join(found) + " |")
            print("|---" * len(found) + "|")
        print("| " + " | ".join(found.values()) + " |", flush=True)


def passes_before(kappa: int) -> int:
    """Of the transformer."""
    return kappa + 1 if kappa else 0


def steps_in(model: Any, kappa: int, evaluations: int) -> int:
    """Of the denoiser on each level, one at least."""
    levels = levels_left(model.generator, kappa)
    return max(1, (evaluations - passes_before(kappa)) // levels) if levels else 1


def steps_within(model: Any, kappa: int, budget: float) -> int:
    """As `steps_in`, by seconds; 0 where not even one fits.

    The time of a sample is that of its first step and as much again for every further one.
    """
    if not levels_left(model.generator, kappa):
        return 1
    one, many = (seconds(model, kappa, steps) for steps in (1, 9))
    return max(0, int(1 + 8 * (budget - one) / (many - one)))


def levels_left(generator: Any, kappa: int) -> int:
    from hstvg.generator.prefixes import first_level

    if kappa == generator.kappas[-1]:
        return 0
    first = first_level(generator.denoiser.examples.written, generator.denoiser.levels, kappa)
    return len(generator.denoiser.levels) - first


def seconds(model: Any, kappa: int, steps: int, clips: int = 8) -> float:
    """Of a clip, when several are sampled together; the best of four times after the first."""
    from hstvg.generate.workflow import sample_block
    from hstvg.generator.generator import Sampling
    from hstvg.paths.draws import Draws
    from hstvg.runtime.worker_local import pick_device

    draws = Draws(0, range(clips), pick_device("cpu"))
    settings = Sampling(kappa=kappa, steps=steps, guidance=3.0)
    taken = []
    for _ in range(5):
        start = time.monotonic()
        sample_block(model, ["a red circle moves right"] * clips, draws, settings, None)
        taken.append((time.monotonic() - start) / clips)
    return min(taken[1:])


def values(scores: Any) -> dict[str, str]:
    """By head; styles where the captions name some."""
    found = {}
    for split, place in {"held-out": "", "unseen combinations": ", unseen"}.items():
        row = dict(scores["control"][split]["generated"])
        if "style" in scores:
            row["style"] = scores["style"][split]["generated"]["style"]
        found |= {f"{control}{place}": shown(estimate) for control, estimate in row.items()}
    ours, real = (scores["motion"]["held-out"][who] for who in ("generated", "real"))
    found["EPE"] = shown(ours["epe"])
    for name, key in {"temporal residual": "residual", "flicker": "flicker"}.items():
        found[f"{name} (real)"] = f"{shown(ours[key])} ({real[key]['value']:.2f})"
    return found


def shown(estimate: Any) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[3:]]
    clips, evaluations = [*numbers, *(96, 24)[len(numbers) :]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), clips, evaluations)
