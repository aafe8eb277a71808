"""The plain engine: torch alone, or its DistributedDataParallel where there are several workers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hstvg.runtime.engine import Precision, StepFacts, check_precision, resolve_precision
from hstvg.runtime.engine_state import Replicated, restore, state_of
from hstvg.types import Prediction


@dataclass(frozen=True, kw_only=True)
class TorchSettings:
    """engine=torch: what the config says of it.

    Args:
        precision: fp32, bf16 (by autocast), or auto: bf16 where the hardware multiplies it.
    """

    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_precision(self.precision)

    def start(self, stage: nn.Module, **facts: Any) -> "TorchEngine":
        """The engine over a stage; `facts` are those of StepFacts."""
        return TorchEngine(stage, StepFacts(**facts), self)


class TorchEngine:
    """float32 weights; bf16 by autocast; every rank holds everything."""

    def __init__(self, stage: nn.Module, facts: StepFacts, settings: TorchSettings) -> None:
        self.stage = stage
        self.facts = facts
        self.holding = Replicated(facts.optimizer)
        self.bf16 = resolve_precision(settings.precision, facts.device) == "bf16"
        self.forward = stage
        if dist.is_initialized() and dist.get_world_size() > 1:
            # find_unused_parameters also keeps the buckets of gradients as they are. Else they
            # would change after the first step, and with them the order in which three or more
            # ranks sum them: no resumed run would equal an undisturbed one.
            devices = [facts.device] if facts.device.type == "cuda" else None
            self.forward = DistributedDataParallel(
                stage, device_ids=devices, find_unused_parameters=True
            )
        self._pending = 0

    def __call__(self, example: Any) -> Prediction:
        # Gradients are averaged over the ranks once a step, with its last micro-batch.
        last = self._pending == self.facts.accumulation - 1
        kind = self.facts.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bf16), self._sync(last):
            return self.forward(example)

    def backward(self, loss: Tensor) -> None:
        last = self._pending == self.facts.accumulation - 1
        with self._sync(last):
            (loss / self.facts.accumulation).backward()
        self._pending += 1

    def step(self, lr: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.stage.parameters(), self.facts.clip_norm)
        for group in self.facts.optimizer.param_groups:
            group["lr"] = lr
        if torch.isfinite(norm):
            self.facts.optimizer.step()
        self.facts.optimizer.zero_grad(set_to_none=True)
        self._pending = 0
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.stage.state_dict(keep_vars=False))

    def gather(self, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield from parts.items()

    def part(self, name: str, whole: Tensor) -> Tensor:
        return whole

    def state(self) -> Iterator[tuple[str, Tensor]]:
        return state_of(self.stage, self.holding)

    def restore(self, read: Callable[[str], Tensor]) -> None:
        restore(self.stage, self.holding, read)

    def _sync(self, last: bool):
        if last or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()
