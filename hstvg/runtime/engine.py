"""What every engine is given, and the precision it may compute in."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

Precision = Literal["fp32", "bf16", "auto"]


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """How a step is made, whichever engine makes it."""

    optimizer: torch.optim.Optimizer
    """AdamW over the weights that are trained."""
    device: torch.device
    accumulation: int
    """Micro-batches per step."""
    micro_batch: int
    """Clips of a micro-batch."""
    clip_norm: float
    """Largest global gradient norm."""


def check_precision(precision: str) -> None:
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision}: choose from {', '.join(get_args(Precision))}")


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 where the hardware multiplies it, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
