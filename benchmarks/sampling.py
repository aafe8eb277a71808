"""What a sample costs: next-scale, with and without memories, against diffusion.

    python -m benchmarks.sampling [model] [clips]

Untrained generators of one model size (tiny if not said) on the same latent and the same prompts,
guidance on, one process: time depends on shapes alone. A network evaluation is one pass of a
generator's network over its guided batch. Operations are counted on the meta device, per clip.

    next-scale            a pass per rung, keys and values of the rungs before in memory
    next-scale, recomputed    a pass per rung over all rungs so far
    diffusion n           n Euler steps in all, dealt evenly to the pyramid's levels

Every way runs several times, in turn with the others; shown is the median. Ratios are to diffusion
in 50 steps, and of the memories to recomputing, for the whole sample and for the last rung alone.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

REPEATS = 5
STEPS = (8, 16, 50)
SCHEDULES = ("cubic", "space", "frames")
PROMPT = "a red circle moves right quickly"


def main(model: str, clips: int) -> None:
    ways: dict[str, Way] = {}
    for schedule in SCHEDULES:
        ways |= next_scale_ways(model, schedule, clips)
    ways |= diffusion_ways(model, clips)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS + 1):  # the first warms up
        for name, way in ways.items():
            start = time.monotonic()
            way.run()
            seconds[name].append((time.monotonic() - start) / clips)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    baseline = f"diffusion {STEPS[-1]}"
    print(f"model={model}, {clips} clips at once, guidance on")
    print(f"{'way':<36} {'s/clip':>8} {'GFLOP':>8} {'passes':>7}  against {baseline}")
    for name, way in ways.items():
        if way.part:
            continue
        faster, fewer = medians[baseline] / medians[name], ways[baseline].passes / way.passes
        counted = f"{way.flops / 1e9:8.2f}" if way.flops else f"{'':>8}"
        print(
            f"{name:<36} {medians[name]:8.4f} {counted} {way.passes:7d}  "
            f"{faster:5.1f} x faster, {fewer:4.1f} x fewer passes"
        )
    for schedule in SCHEDULES:
        for part in ("", ", last rung"):
            with_memory, without = (
                f"next-scale {schedule}{how}{part}" for how in ("", ", recomputed")
            )
            ratio = medians[without] / medians[with_memory]
            print(f"memories at {schedule + (part or ', whole'):<22} {ratio:5.2f} x faster")


class Way:
    """Something to time."""

    def __init__(
        self, run: Callable[[], Any], passes: int, flops: float = 0.0, *, part: bool = False
    ) -> None:
        self.run = run
        self.passes = passes
        self.flops = flops
        self.part = part


def next_scale_ways(model: str, schedule: str, clips: int) -> dict[str, Way]:
    from hstvg.generator.generator import Sampling
    from hstvg.generator.told import read_prompts
    from hstvg.paths.draws import Draws
    from hstvg.types import Condition

    tokenizer, generator = models(model, schedule, "next_scale")
    codec, prompts = tokenizer.codec, [PROMPT] * clips
    draws = Draws(0, list(range(clips)), torch.device("cpu"))
    settings = Sampling(guidance=3.0)
    told, free = read_prompts(prompts, generator.text, draws.device)
    condition = Condition(
        text=torch.cat([told.text, free.text]),
        text_mask=torch.cat([told.text_mask, free.text_mask]),
    )
    blocks, inputs = known(generator, 2 * clips)

    def remembered() -> Any:
        return generator.sample(prompts, codec, draws, settings)

    def recomputed() -> None:
        for number in range(1, len(blocks) + 1):
            if blocks[number - 1].rung is not None:
                whole(number)

    def whole(number: int) -> Any:
        states = generator.transformer(blocks[:number], inputs[:number], [None] * number, condition)
        return generator.head(states[-1])

    def before_last() -> Any:
        memories = generator.transformer.begin(condition)
        for block, x in zip(blocks[:-1], inputs[:-1], strict=True):
            generator.transformer.extend(memories, block, x, condition)
        return memories

    import copy

    ready = before_last()

    def last() -> Any:
        memories = copy.copy(ready)
        memories.layers = [copy.copy(layer) for layer in ready.layers]
        memories.real = list(ready.real)
        states = generator.transformer.extend(memories, blocks[-1], inputs[-1], condition)
        return generator.head(states)

    passes = len(blocks) + 1  # and one for the text
    rungs = sum(block.rung is not None for block in blocks)
    name = f"next-scale {schedule}"
    return {
        name: Way(no_grad(remembered), passes, sample_flops(model, schedule, "next_scale")),
        f"{name}, recomputed": Way(no_grad(recomputed), rungs),
        f"{name}, last rung": Way(no_grad(last), 1, part=True),
        f"{name}, recomputed, last rung": Way(no_grad(lambda: whole(len(blocks))), 1, part=True),
    }


def diffusion_ways(model: str, clips: int) -> dict[str, Way]:
    from hstvg.generator.generator import Sampling
    from hstvg.paths.draws import Draws

    tokenizer, generator = models(model, "cubic", "hst")
    draws = Draws(0, list(range(clips)), torch.device("cpu"))
    ways = {}
    for steps in STEPS:
        each = steps // generator.path.num_levels
        settings = Sampling(guidance=3.0, steps=each)

        def run(settings: Any = settings) -> Any:
            return generator.sample([PROMPT] * clips, tokenizer.codec, draws, settings)

        flops = sample_flops(model, "cubic", "hst", each)
        passes = each * generator.path.num_levels
        ways[f"diffusion {steps}"] = Way(no_grad(run), passes, flops)
    return ways


def models(size: str, schedule: str, kind: str) -> tuple[Any, Any]:
    """A tokenizer and a generator of a size, untrained."""
    from hstvg.generate.bundle import assemble
    from hstvg.runtime.config import compose

    config = compose(
        "train", ["dry_run=true", "stage=generator", f"generator={kind}", f"model={size}"]
    )
    torch.manual_seed(0)
    tokenizer = assemble({**config["tokenizer"], "schedule": schedule}).eval()
    generator = assemble(config["generator"], codec=tokenizer.codec).eval()
    return tokenizer, generator


def known(generator: Any, rows: int) -> tuple[Any, Any]:
    """The blocks of a sample that nothing is given for, with inputs of the right shapes."""
    from hstvg.generator.blocks import blocks_of

    context = generator.context_frames if len(generator.schedule) > 1 else 0
    blocks = blocks_of(generator.schedule, context)
    return blocks, [torch.randn(rows, generator.channels, *block.size) for block in blocks]


def sample_flops(model: str, schedule: str, kind: str, steps: int = 12) -> float:
    """Operations of one sample of one clip, text included."""
    from torch.utils.flop_counter import FlopCounterMode

    from hstvg.generator.generator import Sampling
    from hstvg.paths.draws import Draws

    meta = torch.device("meta")
    with meta:
        tokenizer, generator = models(model, schedule, kind)
    settings = Sampling(guidance=3.0, steps=steps)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generator.sample([PROMPT], tokenizer.codec, Draws(0, [0], meta), settings)
    return float(counter.get_total_flops())


def no_grad(run: Callable[[], Any]) -> Callable[[], Any]:
    return torch.no_grad()(run)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tiny", int(sys.argv[2]) if len(sys.argv) > 2 else 8)
