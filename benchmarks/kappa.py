"""Who should write how many scales: one joint run, sampled at every kappa with as many evaluations.

    python -m benchmarks.kappa RUN DATA [clips] [evaluations]

RUN is of generator=joint, DATA what its scores are taken on. An evaluation is a pass of a network
over a guided batch: of the transformer one for the text and one per scale that it writes, of the
denoiser one per step. The denoiser gets what is left, dealt evenly to the levels that are left.
Seconds are those of sampling alone, on this machine, per clip.
"""

import sys
import time
from pathlib import Path
from typing import Any

CONTROLS = ("colour", "shape", "motion")


def main(run: Path, data: Path, clips: int, evaluations: int) -> None:
    from hstvg.runtime.assemble import open_run
    from hstvg.runtime.config import compose
    from hstvg.runtime.evaluation import evaluate

    model: Any = open_run(run)
    print("| kappa | evaluations | s per clip | " + " | ".join(heads()) + " |")
    print("|---" * (3 + len(heads())) + "|")
    for kappa in model.generator.kappas:
        levels = levels_left(model.generator, kappa)
        passes = kappa + 1 if kappa else 0
        steps = max(1, (evaluations - passes) // levels) if levels else 1
        out = run / "eval" / f"kappa_{kappa}"
        facts = [f"run={run}", f"data.path={data}", f"out={out}", f"kappa={kappa}"]
        facts += [f"steps={steps}", f"num_clips={clips}", "guidance=3"]
        scores = evaluate(compose("evaluate", facts))
        cells = [str(kappa), str(passes + levels * steps), f"{seconds(model, kappa, steps):.3f}"]
        print("| " + " | ".join([*cells, *values(scores)]) + " |", flush=True)


def levels_left(generator: Any, kappa: int) -> int:
    from hstvg.generator.prefixes import first_level

    if kappa == generator.kappas[-1]:
        return 0
    first = first_level(generator.denoiser.written, generator.denoiser.levels, kappa)
    return len(generator.denoiser.levels) - first


def seconds(model: Any, kappa: int, steps: int, clips: int = 8) -> float:
    """Of a clip, when several are sampled together; the second time."""
    from hstvg.generate.workflow import sample_block
    from hstvg.generator.generator import Sampling
    from hstvg.paths.draws import Draws
    from hstvg.runtime.worker_local import pick_device

    draws = Draws(0, range(clips), pick_device("cpu"))
    settings = Sampling(kappa=kappa, steps=steps, guidance=3.0)
    for _ in range(2):
        start = time.monotonic()
        sample_block(model, ["a red circle moves right"] * clips, draws, settings, None)
    return (time.monotonic() - start) / clips


def heads() -> list[str]:
    return [
        *CONTROLS,
        *(f"{control}, unseen" for control in CONTROLS),
        "EPE",
        "temporal residual (real)",
        "flicker (real)",
    ]


def values(scores: Any) -> list[str]:
    found = []
    for split in ("held-out", "unseen combinations"):
        row = scores["control"][split]["generated"]
        found += [shown(row[control]) for control in CONTROLS]
    ours, real = (scores["motion"]["held-out"][who] for who in ("generated", "real"))
    found.append(shown(ours["epe"]))
    found += [
        f"{shown(ours[name])} ({real[name]['value']:.2f})" for name in ("residual", "flicker")
    ]
    return found


def shown(estimate: Any) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[3:]]
    clips, evaluations = [*numbers, *(96, 24)[len(numbers) :]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), clips, evaluations)
