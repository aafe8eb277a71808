"""The DeepSpeed engine: ZeRO 0 to 3 behind the Engine port (arXiv 1910.02054)."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from hstvg.runtime.engine import Precision, StepFacts, check_precision, resolve_precision
from hstvg.runtime.engine_state import restore, state_of
from hstvg.runtime.engine_zero import held_slice, holding_of, join, own_slice
from hstvg.types import Prediction


@dataclass(frozen=True, kw_only=True)
class DeepSpeedSettings:
    """engine=deepspeed: what the config says of it.

    Args:
        zero_stage: 0 replicates, 1 shards optimiser state, 2 gradients too, 3 weights too.
        precision: fp32, bf16 (weights and gradients; the optimiser keeps a float32 copy), or auto:
            bf16 where the hardware multiplies it.
        options: keys merged into DeepSpeed's own config, for what has no name here (offload, ...).
    """

    zero_stage: int = 2
    precision: Precision = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"engine.zero_stage={self.zero_stage}: ZeRO has stages 0, 1, 2 and 3")

    def start(self, stage: nn.Module, **facts: Any) -> "DeepSpeedEngine":
        """The engine over a stage; `facts` are those of StepFacts."""
        return DeepSpeedEngine(stage, StepFacts(**facts), self)


class DeepSpeedEngine:
    """One DeepSpeed engine over the stage."""

    def __init__(self, stage: nn.Module, facts: StepFacts, settings: DeepSpeedSettings) -> None:
        if facts.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        if facts.device.type == "cpu":
            # Else the first start compiles this op for a minute, and a killed compile leaves a lock
            # on which every later start waits for ever. Gloo does the same work.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

        if not dist.is_initialized():  # a local worker: a group of one, which needs no port
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
            os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed asks
        self.accumulation = facts.accumulation
        self._micro = 0
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": facts.micro_batch,
            "gradient_accumulation_steps": facts.accumulation,
            "gradient_clipping": facts.clip_norm,
            "zero_optimization": {"stage": settings.zero_stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": resolve_precision(settings.precision, facts.device) == "bf16"},
            "steps_per_print": 2**31,
            **settings.options,
        }
        self.engine, wrapped, _, _ = deepspeed.initialize(
            model=stage, optimizer=facts.optimizer, config=config, dist_init_required=False
        )
        self.optimizer: Any = wrapped
        self.stage = stage
        zero_stage = self.engine.zero_optimization_stage()  # which the options may have set
        self.holding = holding_of(wrapped, zero_stage)
        # Tied weights by each of their names.
        named = stage.named_parameters(remove_duplicate=False) if zero_stage == 3 else ()
        self.sliced = dict(named)

    def __call__(self, example: Any) -> Prediction:
        return self.engine(example)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)
        self._micro += 1
        if self._micro < self.accumulation:
            self.engine.step()  # counts the micro-batch; updates nothing

    def step(self, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        self._micro = 0
        return float(self.engine.get_global_grad_norm() or 0.0)

    def weights(self) -> dict[str, Tensor]:
        held = dict(self.stage.state_dict())
        return held | {name: held_slice(weight) for name, weight in self.sliced.items()}

    def gather(self, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, part in parts.items():
            yield name, join(self.sliced[name], part) if name in self.sliced else part

    def part(self, name: str, whole: Tensor) -> Tensor:
        return own_slice(self.sliced[name], whole) if name in self.sliced else whole

    def state(self) -> Iterator[tuple[str, Tensor]]:
        return state_of(self.stage, self.holding)

    def restore(self, read: Callable[[str], Tensor]) -> None:
        restore(self.stage, self.holding, read)
