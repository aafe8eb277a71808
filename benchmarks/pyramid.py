"""What the pyramid saves: tokens, operations and time against diffusion of the full sequence.

    python -m benchmarks.pyramid [model] [frames height width]

The same U-Net (model=tiny if not said) on the same clip: full is one level, the latent itself, from
noise to data; the others climb through two or three levels. A token is a cell of the level that the
network is asked about. Every level trains on every clip, so a step asks for more tokens than full,
as many draws as a level is given; arXiv 2410.05954 draws one level per clip instead, whose mean is
the line "one level". A sample spends the same number of evaluations, dealt evenly to the levels,
guidance left out.

Operations are counted on the meta device, per clip; the time of a training step is measured, where
the model is tiny, as the median of steps that take turns.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

EVALUATIONS = 24
STEPS, CLIPS = 8, 8
FULL = "full"


@dataclass(frozen=True)
class Way:
    """Levels of the path, by where each ends, and points per clip on each."""

    name: str
    boundaries: tuple[float, ...]
    draws: tuple[int, ...]


WAYS = (
    Way(FULL, (1.0,), (1,)),
    Way("2 levels", (0.5, 1.0), (1, 1)),
    Way("2 levels, 4 coarse draws", (0.5, 1.0), (4, 1)),
    Way("3 levels", (1 / 3, 2 / 3, 1.0), (1, 1, 1)),
)


def main(model: str, clip: tuple[int, ...]) -> None:
    sizes = {way.name: costs(way, model, clip) for way in WAYS}
    print(f"model={model}, latent {sizes[FULL]['levels'][-1]}, {EVALUATIONS} evaluations a sample")
    print(f"{'':<26} {'step: tokens':>14} {'GFLOP':>10} {'sample: tokens':>16} {'GFLOP':>10}")
    for name, size in sizes.items():
        ratios = [sizes[FULL][key] / size[key] for key in COUNTED]
        cells = [f"{size[key]:,.{1 if size[key] < 100 else 0}f}" for key in COUNTED]
        print(
            f"{name:<26} {cells[0]:>14} {cells[1]:>10} {cells[2]:>16} {cells[3]:>10}   "
            f"full / it: step {ratios[0]:.2f} tokens, {ratios[1]:.2f} GFLOP; "
            f"sample {ratios[2]:.2f}, {ratios[3]:.2f}"
        )
    for way in WAYS[1:]:
        size = sizes[way.name]
        if set(way.draws) == {1}:
            mean = size["step_tokens"] / len(way.draws)
            ratio = sizes[FULL]["step_tokens"] / mean
            print(
                f"one level of {way.name:<13} {mean:>14,.0f}   full / it: step {ratio:.2f} tokens"
            )
    if model == "tiny":
        seconds = timed(model, clip)
        for name, value in seconds.items():
            print(f"{name:<26} {value:8.4f} s per step, full / it {seconds[FULL] / value:.2f}")


COUNTED = ("step_tokens", "step_gflop", "sample_tokens", "sample_gflop")


def costs(way: Way, model: str, clip: tuple[int, ...]) -> dict[str, Any]:
    """Per clip."""
    from torch.utils.flop_counter import FlopCounterMode

    from hstvg.generator.generator import Sampling
    from hstvg.paths.draws import Draws

    meta = torch.device("meta")
    with meta:
        tokenizer, generator = models(way, model, clip)
    tokens = [scale.volume for scale in generator.levels]
    each = EVALUATIONS // len(tokens)
    step = trainer(tokenizer, generator, 1, meta)
    with FlopCounterMode(display=False) as trained:
        step()
    draws, settings = Draws(0, [0], meta), Sampling(guidance=1.0, steps=each)
    with FlopCounterMode(display=False) as sampled, torch.no_grad():
        generator.sample(["a red circle moves right"], tokenizer.codec, draws, settings)
    return {
        "levels": tuple(generator.levels),
        "step_tokens": sum(n * count for n, count in zip(tokens, way.draws, strict=True)),
        "step_gflop": trained.get_total_flops() / 1e9,
        "sample_tokens": each * sum(tokens),
        "sample_gflop": sampled.get_total_flops() / 1e9,
    }


def timed(model: str, clip: tuple[int, ...]) -> dict[str, float]:
    """Median seconds of a training step of CLIPS clips."""
    steps = {
        way.name: trainer(*models(way, model, clip), CLIPS, torch.device("cpu")) for way in WAYS
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(STEPS + 1):  # the first warms up
        for name, step in steps.items():
            start = time.monotonic()
            step()
            seconds[name].append(time.monotonic() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def trainer(tokenizer: Any, generator: Any, clips: int, device: torch.device) -> Any:
    """Forward and backward of clips that are encoded already."""
    from hstvg.generator.hierarchical import MOTION_CHANNELS
    from hstvg.objective.diffusion import DiffusionTerm
    from hstvg.objective.flow import FlowTerm
    from hstvg.paths.draws import Draws
    from hstvg.types import LatentBatch

    size = tuple(tokenizer.latent_size)
    batch = LatentBatch(
        latent=torch.randn(clips, tokenizer.channels, *size, device=device),
        motion=torch.randn(clips, MOTION_CHANNELS, *size, device=device),
        motion_confidence=torch.ones(clips, 1, *size, device=device),
        captions=("a red circle moves right",) * clips,
        positions=torch.arange(clips),
        keys=("",) * clips,
    )
    draws = Draws(0, list(range(clips)), device)

    def step() -> None:
        prediction = generator(generator.example(batch, tokenizer.codec, draws))
        loss = DiffusionTerm()(prediction, batch) + 0.1 * FlowTerm()(prediction, batch)
        loss.mean().backward()
        generator.zero_grad()

    return step


def models(way: Way, size: str, clip: tuple[int, ...]) -> tuple[Any, Any]:
    """A tokenizer and a denoiser, untrained."""
    from hstvg.generate.bundle import assemble
    from hstvg.runtime.config import compose

    names = ("num_frames", "height", "width")
    config = compose(
        "train",
        [
            *("dry_run=true", "stage=generator", "generator=hst", f"model={size}"),
            *(f"data.{name}={value}" for name, value in zip(names, clip, strict=False)),
            f"model.unet.boundaries={list(way.boundaries)}",
            f"model.unet.draws={list(way.draws)}",
        ],
    )
    torch.manual_seed(0)
    tokenizer = assemble(config["tokenizer"]).eval()
    return tokenizer, assemble(config["generator"], codec=tokenizer.codec)


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else "tiny",
        tuple(int(argument) for argument in sys.argv[2:5]),
    )
