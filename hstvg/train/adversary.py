"""The adversary: a discriminator that learns beside an engine to tell its guesses from the truth.

It wraps the engine and is one itself, so neither the loop nor DeepSpeed knows of it: a second
DeepSpeed engine for D(G(x)) is a known source of trouble (its issues 399 and 4923). Small as it is,
every rank holds all of it; its operations are left out of perf/mfu.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.train.ports import Engine, Worker
from hstvg.types import Prediction


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """What the config says of it.

    Args:
        discriminator: [B, 3, T, H, W] pixels -> [B, P] logits.
        start_step: the first step at which it learns and is heard, counted from 1. Before, guesses
            are so blurred that everything can be told from them.
        lr: of its AdamW; constant.

    Raises:
        ValueError: start_step is below 1, or lr not above 0.
    """

    discriminator: nn.Module
    start_step: int
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.9

    def __post_init__(self) -> None:
        if self.start_step < 1 or self.lr <= 0:
            raise ValueError(
                f"adversary.start_step={self.start_step} must be at least 1 and "
                f"adversary.lr={self.lr} above 0"
            )

    def beside(self, engine: Engine, worker: Worker) -> "AdversarialEngine":
        return AdversarialEngine(engine, worker, self)


class AdversarialEngine:
    """An engine whose predictions come with their realism, and whose steps train who judges it."""

    def __init__(self, engine: Engine, worker: Worker, settings: Adversary) -> None:
        self.engine = engine
        self.worker = worker
        self.start_step = settings.start_step
        self.discriminator = settings.discriminator.to(worker.device)
        self.trained = dict(self.discriminator.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=0.0,
        )
        for weight in self.trained.values():  # what AdamW would make at its first step
            moments = {key: torch.zeros_like(weight) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[weight] = {"step": torch.zeros(()), **moments}
        self.steps = torch.zeros((), dtype=torch.long)
        """Steps made, by which it knows when to begin."""
        self._judged = 0
        """Micro-batches since the last step."""
        self._gradient = torch.zeros(())
        """Sum over them, of all weights end to end."""

    def __call__(self, example: Any) -> Prediction:
        prediction = self.engine(example)
        learning = torch.is_grad_enabled()
        if self.steps + learning < self.start_step:
            return prediction
        pair = prediction.pixels
        assert pair is not None, "an adversary needs Prediction.pixels"
        if not learning:
            return replace(prediction, realism=self.discriminator(pair.guess.float()).mean(1))
        # Cut off the engine's graph: its backward never comes here, and this one never there.
        guess = pair.guess.detach().float().requires_grad_()
        fake, real = self.discriminator(guess), self.discriminator(pair.target.detach().float())
        realism = fake.mean(1)
        (slope,) = torch.autograd.grad(realism.sum(), guess, retain_graph=True)
        loss = (F.relu(1 - real) + F.relu(1 + fake)).mean() / 2
        gradients = torch.autograd.grad(loss, list(self.trained.values()))
        self._gradient = self._gradient + torch.cat([part.flatten() for part in gradients])
        self._judged += 1
        accuracy = ((real > 0).float() + (fake < 0).float()).mean() / 2
        said = {"adversary/loss": loss.detach(), "adversary/accuracy": accuracy}
        return replace(
            prediction,
            realism=realism.detach() + _along(pair.guess, slope),
            statistics={**prediction.statistics, **said},
        )

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, lr: float) -> float:
        norm = self.engine.step(lr)
        if self._judged:
            self._learn()
        self.steps += 1
        return norm

    @torch.no_grad()
    def _learn(self) -> None:
        """One update from all that was judged by all workers."""
        whole = self.worker.mean(self._gradient / self._judged)
        self._gradient, self._judged = torch.zeros(()), 0
        parts = whole.split([weight.numel() for weight in self.trained.values()])
        for weight, part in zip(self.trained.values(), parts, strict=True):
            weight.grad = part.view_as(weight)
        if torch.isfinite(whole).all():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        return self.engine.weights()

    def gather(self, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        return self.engine.gather(parts)

    def part(self, name: str, whole: Tensor) -> Tensor:
        return self.engine.part(name, whole)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.engine.state()
        yield from self._own_state()

    @torch.no_grad()
    def restore(self, read: Callable[[str], Tensor]) -> None:
        self.engine.restore(read)
        for name, held in self._own_state():
            held.copy_(read(name))

    def _own_state(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors held, by the names they have in a checkpoint."""
        yield "adversary/steps", self.steps
        for name, weight in self.trained.items():
            for key, held in {"weight": weight.detach(), **self.optimizer.state[weight]}.items():
                yield f"adversary/{key}/{name}", held


def _along(pixels: Float[Tensor, "B 3 T H W"], slope: Tensor) -> Float[Tensor, "B"]:
    """0, with a gradient of `slope` to the pixels: no second way through the discriminator."""
    return (slope * (pixels - pixels.detach())).flatten(1).sum(1)
