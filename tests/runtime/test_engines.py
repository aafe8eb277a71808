"""The training state is the same whoever holds it: any engine goes on from any checkpoint."""

from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hstvg.runtime.checkpoint import read_manifest
from hstvg.runtime.engine_deepspeed import DeepSpeedSettings
from hstvg.runtime.engine_torch import TorchSettings
from hstvg.runtime.errors import CommandError
from hstvg.runtime.saved_state import SavedState
from hstvg.runtime.worker_local import LocalWorker
from hstvg.train.ema import Ema
from hstvg.train.loop import resume, save
from hstvg.train.ports import Engine, Saved, Worker
from hstvg.train.trunk import gram
from hstvg.types import Pair, Prediction


def deepspeed(zero_stage: int, **settings: Any) -> DeepSpeedSettings:
    # At ZeRO 3 DeepSpeed would else put a linear layer of its own, which rounds otherwise, in the
    # place of torch's, for all engines of this process.
    zero = {"stage": zero_stage, "memory_efficient_linear": False}
    options = {"zero_optimization": zero, **settings.pop("options", {})}
    return DeepSpeedSettings(zero_stage=zero_stage, options=options, **settings)


SETTINGS = {"torch": TorchSettings(), **{f"zero-{n}": deepspeed(n) for n in range(4)}}
BF16 = {
    **{f"zero-{n}": deepspeed(n, precision="bf16") for n in range(4)},
    # Another class of DeepSpeed's, for gradients that are added up in float32.
    "zero-1-float32-sums": deepspeed(
        1, precision="bf16", options={"data_types": {"grad_accum_dtype": "fp32"}}
    ),
}
BATCH = 6
"""Divides by 1, 2 and 3 ranks."""
assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
"""float32 keeps 7 digits; engines add up in other orders. Weights here are around 0.1."""


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Odd(nn.Module):
    """Sizes that divide by nothing, tied weights, frozen weights, a scalar and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(5, 7).requires_grad_(False)
        self.first = nn.Linear(7, 11)
        self.tied = nn.Linear(7, 11)
        self.tied.weight = self.first.weight
        self.scaled = Scaled()
        self.register_buffer("offset", torch.full((3,), 0.25))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.offset: Tensor

    def forward(self, x: Tensor) -> Prediction:
        hidden = self.frozen(x.to(self.frozen.bias.dtype)).tanh()
        guess = self.scaled(self.first(hidden) + self.tied(hidden).sin()) + self.offset.sum()
        return Prediction(pixels=Pair(guess=guess, target=torch.ones_like(guess)))


@dataclass
class Run:
    """A stage on an engine, with its average."""

    engine: Engine
    ema: Ema
    stage: Odd

    def train(self, first: int, last: int, *, rank: int = 0, world_size: int = 1) -> list[float]:
        """Steps (first, last] on this rank's share of each batch, in two parts; its losses."""
        losses = []
        for step in range(first + 1, last + 1):
            x = torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))
            for part in x.chunk(world_size)[rank].chunk(2):
                pixels = self.engine(part).pixels
                assert pixels is not None
                loss = (pixels.guess - pixels.target).float().square().mean()
                self.engine.backward(loss)
                losses.append(float(loss.detach()))
            self.engine.step(1e-2)
            self.ema.update(self.engine.weights())
        return losses

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, average included."""
        averages = ((f"ema/{name}", value) for name, value in self.engine.gather(self.ema.average))
        return {name: value.clone() for name, value in chain(self.engine.state(), averages)}


def start(settings: TorchSettings | DeepSpeedSettings, *, seed: int = 0) -> Run:
    """A new run; with another seed every tensor is another."""
    torch.manual_seed(seed)
    stage = Odd()
    stage.offset += seed
    trained = [weight for weight in stage.parameters() if weight.requires_grad]
    engine = settings.start(
        stage,
        optimizer=torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1),
        device=torch.device("cpu"),
        accumulation=2,
        micro_batch=BATCH // 2,
        clip_norm=0.5,
    )
    return Run(engine, Ema(engine.weights(), 0.9), stage)


def local(folder: Path) -> LocalWorker:
    return LocalWorker(folder, device=torch.device("cpu"), keep=1)


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert [name for name, value in got.items() if not torch.equal(value, want[name])] == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Per engine, trained when first asked for: losses and state of six steps, and the folder of
    the checkpoint after three."""

    @cache
    def trained(name: str) -> tuple[list[float], dict[str, Tensor], Path]:
        folder = tmp_path_factory.mktemp(name)
        run = start(SETTINGS[name])
        losses = run.train(0, 3)
        save(3, run.engine, run.ema, local(folder), {"note": name})
        return losses + run.train(3, 6), run.tensors(), folder

    return trained


@pytest.mark.parametrize("reader", SETTINGS)
@pytest.mark.parametrize("writer", SETTINGS)
def test_any_engine_goes_on_from_any_other(writer, reader, undisturbed):
    _, _, folder = undisturbed(writer)
    losses, want, _ = undisturbed(reader)
    run = start(SETTINGS[reader], seed=1)
    assert resume(run.engine, run.ema, local(folder))["step"] == 3
    assert run.ema.updates == 3
    got = run.train(3, 6)
    if reader == writer:
        assert got == losses[6:]
        assert_same(run.tensors(), want)
    assert got == pytest.approx(losses[6:], rel=1e-5)
    for name, value in run.tensors().items():
        assert_close(value, want[name], msg=name)


@pytest.mark.parametrize("name", BF16)
def test_bf16_goes_on_from_its_float32_copies(name, tmp_path):
    run = start(BF16[name])
    run.train(0, 3)
    save(3, run.engine, run.ema, local(tmp_path), {})
    saved, losses = run.tensors(), run.train(3, 6)
    assert saved["weight/first.weight"].dtype == torch.float32
    assert saved["updates"] == 3

    again = start(BF16[name], seed=1)
    resume(again.engine, again.ema, local(tmp_path))
    assert_same(again.tensors(), saved)
    assert again.train(3, 6) == losses
    assert_same(again.tensors(), run.tensors())


def test_bf16_goes_on_in_float32(tmp_path):
    run = start(BF16["zero-2"])
    run.train(0, 3)
    save(3, run.engine, run.ema, local(tmp_path), {})
    saved = run.tensors()
    again = start(SETTINGS["torch"], seed=1)
    resume(again.engine, again.ema, local(tmp_path))
    assert_same(
        {name: value.to(saved[name].dtype) for name, value in again.tensors().items()}, saved
    )


def test_a_checkpoint_names_every_tensor_once_and_whole(undisturbed):
    folder = undisturbed("zero-3")[2] / "checkpoints" / "step_000000003"
    manifest = read_manifest(folder)
    assert (manifest["step"], manifest["ema_updates"], manifest["note"]) == (3, 3, "zero-3")
    assert set(manifest["files"]) == {"state_rank00000.safetensors"}
    saved = SavedState(folder)
    assert isinstance(saved, Saved)
    trained = {
        "first.weight": (11, 7),
        "first.bias": (11,),
        "tied.bias": (11,),
        "scaled.factor": (1,),
    }
    frozen = {"frozen.weight": (7, 5), "frozen.bias": (7,)}
    keys = ("weight", "exp_avg", "exp_avg_sq")
    want = {f"{key}/{name}": shape for key in keys for name, shape in trained.items()}
    want |= {f"weight/{name}": shape for name, shape in frozen.items()}
    averaged = {**trained, **frozen, "tied.weight": (11, 7), "offset": (3,)}
    want |= {f"ema/{name}": shape for name, shape in averaged.items()}
    want |= {"buffer/offset": (3,), "updates": ()}
    run = start(SETTINGS["torch"])
    assert run.tensors().keys() == want.keys()
    assert {name: tuple(saved.read(name).shape) for name in want} == want
    assert saved.read("updates") == 3


# ---- terms at the trunk -----------------------------------------------------------------------


class TwoHeads(nn.Module):
    """Appearance and motion read from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 7)
        self.appearance, self.motion = nn.Linear(7, 3), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Prediction:
        trunk = self.body(x.to(self.body.bias.dtype)).tanh()
        pairs = [
            Pair(guess=guess, target=torch.ones_like(guess))
            for guess in (self.appearance(trunk), self.motion(trunk))
        ]
        return Prediction(velocity=(pairs[0],), motion=(pairs[1],), trunk=(trunk,))


def steps_of(settings: TorchSettings | DeepSpeedSettings, *, look: bool) -> tuple[list, dict]:
    """Gradient norms of three steps of two micro-batches, and the state after them."""
    torch.manual_seed(0)
    stage = TwoHeads()
    engine = settings.start(
        stage,
        optimizer=torch.optim.AdamW(stage.parameters(), lr=1e-2),
        device=torch.device("cpu"),
        accumulation=2,
        micro_batch=BATCH // 2,
        clip_norm=0.5,
    )
    norms = []
    for step in range(3):
        for part in torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step)).chunk(2):
            prediction = engine(part)
            (appearance,), (motion,) = prediction.velocity, prediction.motion
            means = {
                name: (pair.guess.float() - pair.target.float()).square().mean()
                for name, pair in {"diffusion": appearance, "flow": motion}.items()
            }
            if look:
                products = gram(means, prediction.trunk, len(part))
                assert (products.diagonal() > 0).all()
            engine.backward(means["diffusion"] + 0.1 * means["flow"])
        norms.append(engine.step(1e-2))
    return norms, {name: value.clone() for name, value in engine.state()}


WITHOUT_ZERO_3 = {n: s for n, s in {**SETTINGS, **BF16}.items() if n != "zero-3"}
"""Under ZeRO 3 the preflight refuses to look."""


@pytest.mark.parametrize("settings", WITHOUT_ZERO_3.values(), ids=WITHOUT_ZERO_3)
def test_a_look_at_the_trunk_leaves_no_trace_in_the_steps(settings):
    norms, state = steps_of(settings, look=False)
    looked_norms, looked_state = steps_of(settings, look=True)
    assert looked_norms == norms
    assert min(norms) > 0
    assert_same(looked_state, state)


# ---- what cannot be gone on from --------------------------------------------------------------


def test_a_missing_tensor_is_named(undisturbed):
    (saved,) = [local(undisturbed("torch")[2]).resume()]
    assert saved is not None
    run = start(SETTINGS["torch"])
    run.stage.extra = nn.Linear(2, 2)
    with pytest.raises(CommandError, match=r"holds no weight/extra\.weight: ") as caught:
        run.engine.restore(saved.read)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tensor_of_another_shape_is_named(undisturbed):
    saved = local(undisturbed("torch")[2]).resume()
    assert saved is not None
    run = start(SETTINGS["zero-3"])
    with pytest.raises(
        CommandError, match=r"weight/scaled.factor is \[\] in the .* and \[1\] in the model"
    ):
        run.engine.restore(
            lambda name: saved.read(name).sum() if "scaled" in name else saved.read(name)
        )


def test_a_checkpoint_of_another_format_is_refused(undisturbed, tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 1, "step": 3, "files": {}}')
    with pytest.raises(CommandError, match="of format 1, and this version goes on from format 2"):
        SavedState(tmp_path)


def test_the_workers_keep_the_ports(tmp_path):
    assert isinstance(local(tmp_path), Worker)
    assert all(isinstance(start(settings).engine, Engine) for settings in SETTINGS.values())
