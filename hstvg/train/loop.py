"""The training loop: batch, example, prediction, loss, step, log, checkpoint.

It knows its rank, its device, whom to report to and where to resume from, and nothing else of the
machine: the same function runs under Ray Train and in a plain process.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hstvg.objective.objective import Objective, skill
from hstvg.paths.draws import Draws, seed_of
from hstvg.train.ema import Ema
from hstvg.train.ports import Engine, Stage, Stream, Tracker, Worker
from hstvg.train.schedule import learning_rate
from hstvg.train.trunk import GRAM, gram, pulls
from hstvg.types import Prediction, TrainingBatch

HELD_OUT_SEED = 20_011
"""Noise and times of the held-out clips never change: a run is compared with itself and others."""

Export = Callable[[dict[str, Tensor], int], None]
"""(averaged weights, step) -> a loadable model, written by rank 0."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Numbers of a run, as the config states them."""

    steps: int
    seed: int
    global_batch: int
    accumulation: int
    checkpoint_every: int
    validate_every: int
    log_every: int
    gradients_every: int
    """Steps from one look at the terms' gradients at the shared trunk to the next; 0 is never."""
    lr: float
    warmup_steps: int
    final_lr_ratio: float
    flops_per_step: float | None = None
    """Of one worker; None where unknown."""
    peak_flops: float | None = None
    """Of one worker's device per second; None where unknown, and then no MFU is reported."""


def train(
    facts: Facts,
    *,
    stage: Stage,
    objective: Objective,
    engine: Engine,
    ema: Ema,
    worker: Worker,
    tracker: Tracker,
    stream: Stream,
    export: Export,
) -> dict[str, float]:
    """Train to facts.steps from the newest checkpoint; returns the last held-out values."""
    manifest = resume(engine, ema, worker)
    step = int(manifest["step"])
    check_data(manifest, stream)
    objective.restore(manifest.get("objective", {}))
    tracker.begin(step)
    clock = Clock(facts, first_step=step)
    held_out = {}
    if step >= facts.steps:
        held_out = validate(stage, objective, engine, worker, stream)
        publish(step, engine, ema, worker, export)  # a kill may have come before it
    batches = stream.train(first_step=step)
    samples, all_samples = (stream.state(at)["samples"] for at in (step, facts.steps))
    while step < facts.steps:
        step += 1
        lr = _learning_rate(facts, step)
        progress = samples / all_samples
        sums, waited_s = accumulate(
            facts, step, progress, stage, objective, engine, worker, batches
        )
        values, statistics = share(step, sums, worker, stream)
        grad_norm = engine.step(lr)
        values |= stage.observe(statistics)
        objective.observe(_of("trivial", values))
        ema.update(engine.weights())

        values |= _named("weight", objective.weights(progress))
        values |= _named("skill", _skills(_of("loss", values), _of("trivial", values)))
        if GRAM in statistics:
            values |= pulls(tuple(objective.terms), statistics[GRAM])
        before, samples = samples, stream.state(step)["samples"]
        scalars = {"samples": samples, **values, "lr": lr, "grad_norm": grad_norm}
        scalars |= clock.tick(waited_s, samples - before)
        last = step == facts.steps
        if last or step % facts.validate_every == 0:
            held_out = validate(stage, objective, engine, worker, stream)
            scalars |= held_out
            clock.pause()
        tracker.scalars(step, scalars)
        if worker.rank == 0 and (last or step % facts.log_every == 0):
            worker.say(progress_line(step, facts, scalars, clock))
        if last or step % facts.checkpoint_every == 0:
            stream.sync()
            kept = {**stream.state(step), "objective": objective.state()}
            save(step, engine, ema, worker, kept)
            publish(step, engine, ema, worker, export)
            clock.pause()
    worker.report(held_out)
    return held_out


def accumulate(
    facts: Facts,
    step: int,
    progress: float,
    stage: Stage,
    objective: Objective,
    engine: Engine,
    worker: Worker,
    batches: Iterator[TrainingBatch],
) -> tuple[dict[str, Tensor], float]:
    """Gradients of one step; this worker's loss, term by term, what was measured beside it, and the
    seconds waited.

    Raises:
        ValueError: gradients at the trunk are asked of a model that names no trunk.
    """
    look = facts.gradients_every and step % facts.gradients_every == 0
    sums: dict[str, Tensor] = {}
    waited_s = 0.0
    for _ in range(facts.accumulation):
        before = time.monotonic()
        batch = next(batches)
        waited_s += time.monotonic() - before
        positions = batch.positions.tolist()
        draws = Draws(facts.seed, positions, worker.device)
        seed_dropout(facts.seed, positions[0])
        prediction = engine(stage.example(batch, draws))
        if facts.gradients_every and not prediction.trunk:
            raise ValueError(
                f"run.gradients_every={facts.gradients_every}, but this model has no trunk that "
                "several heads share; set it to 0"
            )
        loss, terms = objective(prediction, batch, progress)
        trivial = objective.trivial(prediction, batch)
        means = {"loss": loss, **_named("loss", terms), **_named("trivial", trivial)}
        means |= prediction.statistics
        if look:
            means[GRAM] = gram(terms, prediction.trunk, len(batch))
        engine.backward(loss)
        for name, value in means.items():
            value = value.detach()
            sums[name] = sums.get(name, torch.zeros_like(value)) + value / facts.accumulation
    return sums, waited_s


def share(
    step: int, sums: dict[str, Tensor], worker: Worker, stream: Stream
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The values of a step as means of all workers, single ones apart from measured tensors;
    damaged samples are told to all of them."""
    found = stream.substitutions()
    sums["data/substituted"] = torch.tensor(float(len(found)), device=worker.device)
    sizes = [value.numel() for value in sums.values()]
    means = worker.mean(torch.cat([value.reshape(-1).float() for value in sums.values()]))
    parts = dict(zip(sums, means.split(sizes), strict=True))
    values = {name: float(part) for name, part in parts.items() if sums[name].ndim == 0}
    statistics = {name: parts[name].view(sums[name].shape) for name in parts if name not in values}
    values["data/substituted"] = round(values["data/substituted"] * worker.world_size)
    if values["data/substituted"]:  # rare, so their names are worth a second exchange
        stream.quarantine(worker.gather(found), step)
    return values, statistics


def seed_dropout(seed: int, position: int) -> None:
    """Seed the generators, of the CPU and of every GPU, that modules take their dropout from.

    They belong to a process; seeded with the place in the plan where a micro-batch begins, they
    give it the same numbers in a resumed run, and for any number of workers.
    """
    torch.manual_seed(seed_of(seed, position, "dropout"))


@torch.no_grad()
def validate(
    stage: Stage, objective: Objective, engine: Engine, worker: Worker, stream: Stream
) -> dict[str, float]:
    """Unweighted terms on held-out clips and their skill, single values that the stage measured,
    and PSNR of predicted pixels; mean of all workers."""
    sums: dict[str, Tensor] = {}
    count = 0
    stage.train(False)
    for batch in stream.held_out():
        draws = Draws(HELD_OUT_SEED, batch.positions.tolist(), worker.device)
        prediction = engine(stage.example(batch, draws))
        _, terms = objective(prediction, batch)
        terms |= _named("trivial", objective.trivial(prediction, batch))
        if prediction.pixels is not None:
            terms["psnr"] = psnr(prediction).mean()
        terms |= {name: one for name, one in prediction.statistics.items() if one.ndim == 0}
        for name, value in _named("val", terms).items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
        count += 1
    stage.train()
    means = worker.mean(torch.stack(list(sums.values())).float() / count)
    values = dict(zip(sums, means.tolist(), strict=True))
    return values | _named("val/skill", _skills(_of("val", values), _of("val/trivial", values)))


def psnr(prediction: Prediction) -> Tensor:
    """Decibels per clip, of pixels in [-1, 1]."""
    assert prediction.pixels is not None
    error = prediction.pixels.guess.float().clamp(-1, 1) - prediction.pixels.target.float()
    return -10 * torch.log10((error / 2).square().flatten(1).mean(1).clamp_min(1e-10))


def save(step: int, engine: Engine, ema: Ema, worker: Worker, facts: Mapping[str, Any]) -> None:
    """Write a checkpoint, with facts for its manifest; called by all ranks."""
    averages = ((f"ema/{name}", whole) for name, whole in engine.gather(ema.average))
    tensors = chain(engine.state(), averages)
    worker.checkpoint(step, {**facts, "ema_updates": ema.updates}, tensors)


def publish(step: int, engine: Engine, ema: Ema, worker: Worker, export: Export) -> None:
    """Write the averaged weights as a loadable model; called by all ranks."""
    whole = {name: value.cpu() for name, value in engine.gather(ema.average) if worker.rank == 0}
    if worker.rank == 0:
        export(whole, step)


def resume(engine: Engine, ema: Ema, worker: Worker) -> Mapping[str, Any]:
    """Load the newest checkpoint and return its manifest; a new run's says step 0 and no more."""
    saved = worker.resume()
    if saved is None:
        return {"step": 0}
    engine.restore(saved.read)
    averages = ((name, engine.part(name, saved.read(f"ema/{name}"))) for name in ema.average)
    ema.restore(averages, updates=saved.manifest["ema_updates"])
    return saved.manifest


def check_data(manifest: Mapping[str, Any], stream: Stream) -> None:
    """Raises ValueError if the data have changed since the checkpoint, or their order."""
    for name, value in stream.state(int(manifest["step"])).items():
        if manifest.get(name, value) != value:
            was = manifest[name]
            raise ValueError(f"the checkpoint was trained with {name} {was}, and now it is {value}")


class Clock:
    """Where the time of a step goes."""

    def __init__(self, facts: Facts, first_step: int) -> None:
        self.facts = facts
        self.first_step = first_step
        self.done = 0
        self.spent_s = 0.0
        self.last = time.monotonic()

    def tick(self, waited_s: float, clips: int) -> dict[str, float]:
        """The performance of the step that just ended."""
        now = time.monotonic()
        step_s, self.last = now - self.last, now
        self.done += 1
        self.spent_s += step_s
        values = {
            "perf/step_s": step_s,
            "perf/clips_per_s": clips / step_s,
            "perf/data_wait": waited_s / step_s,
        }
        if self.facts.flops_per_step and self.facts.peak_flops:
            values["perf/mfu"] = self.facts.flops_per_step / step_s / self.facts.peak_flops
        return values

    def pause(self) -> None:
        """Leave validation and checkpoints out of the next step's time."""
        self.last = time.monotonic()

    def left_s(self) -> float:
        remaining = self.facts.steps - self.first_step - self.done
        return self.spent_s / max(self.done, 1) * remaining


def progress_line(step: int, facts: Facts, scalars: dict[str, float], clock: Clock) -> str:
    terms = "  ".join(
        f"{name.removeprefix('loss/')} {value:.4f}"
        for name, value in scalars.items()
        if name.startswith("loss/")
    )
    speed = f"{scalars['perf/clips_per_s']:.0f} clips/s  wait {scalars['perf/data_wait']:.0%}"
    minutes, seconds = divmod(round(clock.left_s()), 60)
    return f"step {step}/{facts.steps}  {terms}  {speed}  {minutes}:{seconds:02d} left"


def _learning_rate(facts: Facts, step: int) -> float:
    return learning_rate(
        step,
        peak=facts.lr,
        warmup_steps=facts.warmup_steps,
        total_steps=facts.steps,
        final_ratio=facts.final_lr_ratio,
    )


def _skills(losses: Mapping[str, float], trivial: Mapping[str, float]) -> dict[str, float]:
    return {name: skill(losses[name], value) for name, value in trivial.items()}


def _named(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}/{name}": value for name, value in values.items()}


def _of(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a group, by the names they have in it: the inverse of `_named`."""
    inside = f"{group}/"
    return {
        name.removeprefix(inside): value
        for name, value in values.items()
        if name.startswith(inside)
    }
