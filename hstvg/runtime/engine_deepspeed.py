"""The DeepSpeed engine: ZeRO 0 to 3 behind the Engine port (arXiv 1910.02054)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hstvg.runtime.engine_torch import Precision, check_precision, resolve_precision
from hstvg.types import Prediction

TAG = "deepspeed"


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
        return DeepSpeedEngine(stage, settings=self, **facts)


class DeepSpeedEngine:
    """One DeepSpeed engine over the stage.

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
        settings: DeepSpeedSettings,
    ) -> None:
        if device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        if device.type == "cpu":
            # Else the first start compiles this op for a minute, and a killed compile leaves a lock
            # on which every later start waits for ever. Gloo does the same work.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

        if not dist.is_initialized():  # a local worker: a group of one, which needs no port
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
            os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed asks
        self.accumulation = accumulation
        self.zero_stage = settings.zero_stage
        self._micro = 0
        bf16 = resolve_precision(settings.precision, device) == "bf16"
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": clip_norm,
            "zero_optimization": {"stage": self.zero_stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": bf16},
            "steps_per_print": 2**31,
            **settings.options,
        }
        self.engine, wrapped, _, _ = deepspeed.initialize(
            model=stage, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.optimizer: Any = wrapped
        self.stage: Any = self.engine.module

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
        if self.zero_stage < 3:
            return {name: value.detach() for name, value in self.stage.state_dict().items()}
        parameters = self.stage.named_parameters(
            remove_duplicate=False
        )  # tied weights by each name
        held = {name: value.ds_tensor.detach() for name, value in parameters}
        return held | {name: value.detach() for name, value in self.stage.named_buffers()}

    def gather(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.zero_stage < 3:
            return {name: value.detach().cpu() for name, value in weights.items()}
        parameters = self.stage.named_parameters(remove_duplicate=False)
        shapes = {name: value.ds_shape for name, value in parameters}
        whole = {}
        for name, part in weights.items():
            if name not in shapes:
                whole[name] = part.cpu()
                continue
            parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, part.contiguous())
            flat = torch.cat([piece.flatten() for piece in parts])
            whole[name] = flat[: shapes[name].numel()].view(shapes[name]).cpu()
        return whole

    def save(self, folder: Path) -> None:
        # `latest` is not written: the manifest, committed atomically, says what is there.
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RuntimeError(f"{folder} holds no DeepSpeed state for this world size")
