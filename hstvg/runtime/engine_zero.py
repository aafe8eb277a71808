"""What the ranks hold under ZeRO (arXiv 1910.02054), whole and in parts, through DeepSpeed."""

from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hstvg.runtime.engine_state import WEIGHT, Holding, Replicated, start_moments


def holding_of(optimizer: Any, zero_stage: int) -> Holding:
    """How the weights lie in what DeepSpeed has made of the optimiser."""
    if zero_stage == 3:
        return Sliced(optimizer)
    if zero_stage > 0:
        return Flat(optimizer)
    if isinstance(optimizer, torch.optim.Optimizer):
        return Replicated(optimizer)
    weights, masters = chain(*optimizer.fp16_groups), chain(*optimizer.fp32_groups)
    holding = Replicated(optimizer.optimizer, dict(zip(weights, masters, strict=True)))
    for weight, master in holding.masters.items():
        # DeepSpeed has stepped without a gradient, to make AdamW's moments, and so with decay.
        master.data.copy_(weight)
    return holding


class Flat:
    """ZeRO 1 and 2: all float32 weights end to end in one tensor, of which each rank holds a cut.

    A cut ends anywhere, also within a weight.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        cuts = [cut for group in optimizer.param_groups for cut in group["params"]]
        self.updates = start_moments(optimizer.optimizer, cuts)
        # It does so after its first step; the moments of a weight cannot be had before.
        optimizer._lazy_init_hp_params_optimizer_state()

    def whole(self, weight: nn.Parameter, key: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not weight.requires_grad:
            return weight.detach()
        full: Any = (
            safe_get_full_fp32_param(weight)
            if key == WEIGHT
            else safe_get_full_optimizer_state(weight, key)
        )
        return full

    def take(self, weight: nn.Parameter, key: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if not weight.requires_grad:
            weight.data.copy_(whole)
        elif key == WEIGHT:
            safe_set_full_fp32_param(weight, whole)
        else:
            safe_set_full_optimizer_state(weight, whole, key)

    def refresh(self) -> None:
        self.optimizer.update_lp_params()


class Sliced:
    """ZeRO 3: of every weight each rank holds one slice, the last of them padded."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.updates = start_moments(optimizer.optimizer, optimizer.fp32_partitioned_groups_flat)

    def whole(self, weight: nn.Parameter, key: str) -> Tensor:
        return join(weight, self._slice(weight, key))

    def take(self, weight: nn.Parameter, key: str, whole: Tensor) -> None:
        self._slice(weight, key).copy_(own_slice(weight, whole))

    def refresh(self) -> None:
        # Small weights are kept whole: dropped here, computed with anew below.
        self.optimizer.checkpoint_event_prologue()
        for group in range(len(self.optimizer.fp16_groups)):
            self.optimizer._reassign_or_swap_out_partitioned_parameters(group)
        self.optimizer.checkpoint_event_epilogue()

    def _slice(self, weight: nn.Parameter, key: str) -> Tensor:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        if not weight.requires_grad:
            return held_slice(weight)
        if key == WEIGHT:
            return safe_get_local_fp32_param(weight).detach()
        return safe_get_local_optimizer_state(weight, key)


def held_slice(weight: Any) -> Tensor:
    """What this rank holds of a weight that it computes with, under ZeRO 3."""
    return weight.ds_tensor.detach()


def join(weight: Any, own: Tensor) -> Tensor:
    """The whole of a weight, or of anything of its shape, from every rank's slice under ZeRO 3."""
    slices = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(slices, own.contiguous())
    return torch.cat(slices)[: weight.ds_numel].view(weight.ds_shape)


def own_slice(weight: Any, whole: Tensor) -> Tensor:
    """This rank's slice under ZeRO 3: the inverse of `join`."""
    size = weight.ds_tensor.numel()
    begin = dist.get_rank() * size
    own = whole.flatten()[begin : begin + size]
    return nn.functional.pad(own, (0, size - own.numel()))
