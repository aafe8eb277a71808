"""The plain engine: torch alone, or its DistributedDataParallel where there are several workers."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hstvg.types import Prediction

Precision = Literal["fp32", "bf16", "auto"]


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 where the hardware multiplies it, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


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
        return TorchEngine(stage, precision=self.precision, **facts)


def check_precision(precision: str) -> None:
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision}: choose from {', '.join(get_args(Precision))}")


class TorchEngine:
    """float32 weights; bf16 by autocast; every rank holds everything.

    Args:
        accumulation: micro-batches per step.
        clip_norm: largest global gradient norm.
    """

    def __init__(
        self,
        stage: nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        accumulation: int,
        micro_batch: int,
        clip_norm: float,
        precision: Precision,
    ) -> None:
        self.stage = stage
        self.optimizer = optimizer
        self.device = device
        self.accumulation = accumulation
        self.clip_norm = clip_norm
        self.bf16 = resolve_precision(precision, device) == "bf16"
        self.spread = dist.is_initialized() and dist.get_world_size() > 1
        devices = [device] if device.type == "cuda" else None
        self.forward = DistributedDataParallel(stage, device_ids=devices) if self.spread else stage
        self._pending = 0

    def __call__(self, example: Any) -> Prediction:
        # Gradients are averaged over the ranks once a step, with its last micro-batch.
        last = self._pending == self.accumulation - 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16), self._sync(last):
            return self.forward(example)

    def backward(self, loss: Tensor) -> None:
        last = self._pending == self.accumulation - 1
        with self._sync(last):
            (loss / self.accumulation).backward()
        self._pending += 1

    def step(self, lr: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.stage.parameters(), self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if torch.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._pending = 0
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.stage.state_dict(keep_vars=False))

    def gather(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().cpu() for name, value in weights.items()}

    def save(self, folder: Path) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            state = {"stage": self.stage.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / "torch.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "torch.pt", map_location=self.device, weights_only=True)
        self.stage.load_state_dict(state["stage"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _sync(self, last: bool):
        if last or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()
