"""The adversary learns to tell, moves pixels alone, and goes on as if nothing had happened."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hstvg.nn.discriminator import PatchDiscriminator
from hstvg.objective.adversarial import AdversarialTerm
from hstvg.runtime.checkpoint import newest
from hstvg.runtime.engine_torch import TorchSettings
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.launch import run_training
from hstvg.runtime.saved_state import SavedState
from hstvg.runtime.track_jsonl import read_metrics
from hstvg.runtime.worker_local import LocalWorker
from hstvg.train.adversary import AdversarialEngine, Adversary
from hstvg.train.ports import Engine
from hstvg.types import Pair, Prediction, VideoBatch

CPU = torch.device("cpu")
SHAPE = (3, 4, 16, 16)


class Painter(nn.Module):
    """Guesses one colour everywhere; the truth is noise around another."""

    def __init__(self):
        super().__init__()
        self.colour = nn.Parameter(torch.tensor([0.5, -0.5, 0.0]))

    def forward(self, target):
        guess = self.colour.view(1, 3, 1, 1, 1).expand_as(target)
        return Prediction(pixels=Pair(guess=guess * 1, target=target))


class Workers(LocalWorker):
    """Two workers in one: the mean of what it is given and of what the other had."""

    world_size = 2
    other = torch.zeros(())

    def mean(self, values):
        return (values + self.other) / 2


def started(*, start_step=1, worker=None, accumulation=1, **settings) -> AdversarialEngine:
    torch.manual_seed(0)
    stage = Painter()
    engine = TorchSettings().start(
        stage,
        optimizer=torch.optim.AdamW(stage.parameters(), lr=1e-2),
        device=CPU,
        accumulation=accumulation,
        micro_batch=4,
        clip_norm=1.0,
    )
    judge = PatchDiscriminator(base=8, depth=2)
    worker = worker or LocalWorker(Path(), device=CPU, keep=1)
    settings = Adversary(discriminator=judge, start_step=start_step, **settings)
    return settings.beside(engine, worker)


def noise(step, count=4):
    return 0.5 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(step))


def batch_of(pixels):
    count = len(pixels)
    return VideoBatch(
        pixels=pixels,
        fps=torch.full((count,), 8.0),
        captions=("",) * count,
        positions=torch.arange(count),
        keys=("",) * count,
    )


def judging(engine):
    return {name: value.detach().clone() for name, value in engine.trained.items()}


def test_it_learns_to_tell():
    engine = started(lr=1e-3)
    said = []
    for step in range(1, 61):
        prediction = engine(noise(step))
        engine.backward(prediction.pixels.guess.sum() * 0)
        engine.step(0.0)
        said.append(prediction.statistics)
    assert said[0]["adversary/loss"] > 0.8
    assert said[-1]["adversary/loss"] < 0.1
    assert said[-1]["adversary/accuracy"] == 1
    with torch.no_grad():
        assert (engine(noise(99)).realism < 0).all()
        assert "adversary/loss" not in engine(noise(99)).statistics


def test_before_its_start_nothing_is_judged_and_nothing_learnt():
    engine = started(start_step=3)
    before = judging(engine)
    heard = []
    for step in range(1, 4):
        with torch.no_grad():
            held_out = engine(noise(step))
        prediction = engine(noise(step))
        engine.backward(prediction.pixels.guess.mean())
        moved = any(not torch.equal(before[name], value) for name, value in judging(engine).items())
        heard.append((held_out.realism is not None, prediction.realism is not None, moved))
        engine.step(1e-2)
    # At step 3 it learns; a validation after step 3 would be the first to hear it.
    assert heard == [(False, False, False), (False, False, False), (False, True, False)]
    assert any(not torch.equal(before[name], value) for name, value in judging(engine).items())


def test_its_gradient_reaches_the_stage_through_the_pixels_alone():
    engine = started()
    prediction = engine(noise(1))
    guess = prediction.pixels.guess
    through = torch.autograd.grad(prediction.realism.sum(), guess, retain_graph=True)[0]
    alone = guess.detach().requires_grad_()
    direct = torch.autograd.grad(engine.discriminator(alone).mean(1).sum(), alone)[0]
    torch.testing.assert_close(through, direct)
    torch.testing.assert_close(prediction.realism, engine.discriminator(guess).mean(1))

    before = judging(engine)
    engine.backward(AdversarialTerm()(prediction, batch_of(noise(1))).mean())
    assert engine.engine.stage.colour.grad.abs().min() > 0
    assert all(weight.grad is None for weight in engine.trained.values())
    assert all(torch.equal(before[name], value) for name, value in judging(engine).items())


def one_step(engine, *parts):
    for part in parts:
        engine.backward(engine(part).pixels.guess.mean() * 0)
    engine.step(0.0)
    return judging(engine)


def test_micro_batches_and_workers_are_averaged():
    whole, start = noise(1, 8), judging(started())
    want = one_step(started(), whole)
    assert any(not torch.equal(start[name], value) for name, value in want.items())
    halves = one_step(started(accumulation=2), *whole.chunk(2))

    worker = Workers(Path(), device=CPU, keep=1)
    other = started(worker=worker)
    given = []
    worker.mean = lambda values: given.append(values) or values
    one_step(other, whole[4:])
    shared = Workers(Path(), device=CPU, keep=1)
    shared.other = given[0]
    two = one_step(started(worker=shared), whole[:4])
    for name, value in want.items():
        # AdamW's first step is about lr in every weight, whatever its gradient.
        torch.testing.assert_close(halves[name], value, atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(two[name], value, atol=2e-6, rtol=1e-4)


def test_a_gradient_that_is_not_finite_is_not_learnt_from():
    engine = started()
    before = judging(engine)
    after = one_step(engine, noise(1) * torch.inf)
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_it_is_an_engine_that_goes_on_from_its_state():
    engine = started(start_step=2)
    assert isinstance(engine, Engine)
    for step in range(1, 4):
        one_step(engine, noise(step))
    saved = {name: value.clone() for name, value in engine.state()}
    again = started(start_step=2, lr=1e-3)
    again.optimizer.param_groups[0]["lr"] = 2e-4
    for weight in again.trained.values():
        nn.init.zeros_(weight)
    again.restore(saved.__getitem__)
    want, got = one_step(engine, noise(4)), one_step(again, noise(4))
    assert all(torch.equal(got[name], value) for name, value in want.items())
    assert {name: value.tolist() for name, value in engine.state()} == {
        name: value.tolist() for name, value in again.state()
    }
    assert saved["adversary/steps"] == 3
    assert saved["adversary/step/steps.0.weight"] == 2


@pytest.mark.parametrize("wrong", [{"start_step": 0}, {"start_step": 1, "lr": 0.0}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"adversary\.start_step"):
        Adversary(discriminator=nn.Identity(), **wrong)


# ---- in a run -----------------------------------------------------------------------------------

ON = ("adversary=hinge", "adversary.discriminator.base=8", "adversary.discriminator.depth=2")


def lines_of(run, *, but=("perf/",)):
    return [
        {name: value for name, value in line.items() if not name.startswith(but)}
        for line in read_metrics(run / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_locally):
    """`off`, `idle` with an adversary that never begins, `on` with one from step 2."""
    root = tmp_path_factory.mktemp("runs")
    run_locally(root, "off")
    run_locally(root, "idle", *ON, "adversary.start_step=5")
    run_locally(root, "on", *ON, "adversary.start_step=2")
    return root


def exported(run):
    return load_file(run / "export" / "model.safetensors")


def test_until_it_begins_a_run_is_what_it_would_be_without(runs):
    adversarial = ("perf/", "loss/adversarial", "val/adversarial")
    assert lines_of(runs / "idle", but=adversarial) == lines_of(runs / "off")
    off, idle = exported(runs / "off"), exported(runs / "idle")
    assert all(torch.equal(idle[name], value) for name, value in off.items())
    assert {line["loss/adversarial"] for line in lines_of(runs / "idle")} == {0}


def test_once_it_begins_it_is_heard(runs):
    off, on = lines_of(runs / "off"), lines_of(runs / "on")
    assert "adversary/loss" not in on[0]
    assert all(0 < line["adversary/loss"] < 2 for line in on[1:])
    assert all(0 <= line["adversary/accuracy"] <= 1 for line in on[1:])
    assert on[1]["loss/reconstruction"] == off[1]["loss/reconstruction"]
    assert on[2]["loss/reconstruction"] != off[2]["loss/reconstruction"]
    assert on[3]["val/adversarial"] != 0
    for line in on:
        values = {"reconstruction": 3.0, "temporal": 0.2, "kl": 1e-4, "codec": 0.01}
        values |= {"commitment": 0.01, "adversarial": 1.0}
        total = sum(weight * line[f"loss/{name}"] for name, weight in values.items())
        assert line["loss"] == pytest.approx(total, rel=1e-5)


def test_resumed_equals_undisturbed(runs, run_locally, tmp_path):
    resumed = Path(shutil.copytree(runs / "on", tmp_path / "on"))
    shutil.rmtree(resumed / "checkpoints" / "step_000000004")
    shutil.rmtree(resumed / "export")
    run_locally(tmp_path, "on", *ON, "adversary.start_step=2")
    assert lines_of(resumed) == lines_of(runs / "on")
    want, got = exported(runs / "on"), exported(resumed)
    assert all(torch.equal(got[name], value) for name, value in want.items())
    states = [SavedState(newest(run / "checkpoints")) for run in (resumed, runs / "on")]
    names = [name for name in states[0]._holder if name.startswith("adversary/")]
    assert "adversary/exp_avg_sq/steps.1.weight" in names
    assert all(torch.equal(states[0].read(name), states[1].read(name)) for name in names)


def test_the_loadable_model_knows_no_adversary(runs):
    assert exported(runs / "on").keys() == exported(runs / "off").keys()


def test_a_run_does_not_take_on_an_adversary_on_its_way(runs, compose_run):
    with pytest.raises(ConfigError, match="adversary was None, now"):
        run_training(*compose_run(runs, "off", "worker=local", "engine=torch", *ON))


def test_a_generator_has_no_pixels_to_judge(runs, compose_run, tmp_path):
    more = ("stage=generator", f"tokenizer_run={runs / 'off'}", "worker=local", "engine=torch")
    with pytest.raises(ConfigError, match="only stage=tokenizer"):
        run_training(*compose_run(tmp_path, "gen", *more, *ON))


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_under_zero_it_is_the_same_adversary(zero_stage, runs, run_locally, tmp_path):
    # At ZeRO 3 DeepSpeed would else put its own linear layer in the place of torch's, for good.
    options = f"{{stage:{zero_stage},memory_efficient_linear:false}}"
    engine = ("engine=deepspeed", f"+engine.options.zero_optimization={options}")
    sharded = run_locally(tmp_path, "on", *ON, "adversary.start_step=2", *engine)
    for line, other in zip(lines_of(sharded), lines_of(runs / "on"), strict=True):
        assert line == pytest.approx(other, rel=2e-3)
