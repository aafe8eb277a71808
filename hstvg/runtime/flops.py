"""Sizes, operations and memory of a run, counted on the meta device: nothing is run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hstvg.data.latent import LatentLayout
from hstvg.data.sample import MOTION_STRIDE, Window
from hstvg.paths.draws import Draws
from hstvg.runtime.assemble import build_objective, build_stage
from hstvg.runtime.config import build
from hstvg.runtime.latents import read_lineage
from hstvg.scene.layout import LABELS
from hstvg.scene.syntax import MAX_OBJECTS
from hstvg.types import LatentBatch, Layout, VideoBatch

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Dense bf16 operations per second, from the vendors' datasheets."""


CAPTION = "a red circle moves right quickly, the camera pans left"
"""Of a usual length."""


def peak(device: torch.device) -> float | None:
    """Of a known GPU; None elsewhere, where no utilisation is reported."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAK_FLOPS.items() if key in name), None)


def step_flops(config: Mapping[str, Any]) -> float:
    """Operations of one micro-batch on one worker, forward and backward."""
    with torch.device("meta"):
        tokenizer = build(config["tokenizer"]) if config["generator"] else None
        stage = build_stage(config, tokenizer)
    return _count(config, stage)


def dry_run(config: Mapping[str, Any]) -> str:
    """What a run would be: parameters, operations, token counts, memory per ZeRO stage."""
    with torch.device("meta"):
        frozen = build(config["tokenizer"]) if config["tokenizer"] else None
        stage = build_stage(config, frozen if config["generator"] else None)
    assert isinstance(stage, torch.nn.Module)
    trained = sum(weight.numel() for weight in stage.parameters() if weight.requires_grad)
    workers = config["worker"].get("num_workers", 1)
    run, data = config["run"], config["data"]
    stage_2 = config["generator"] is not None
    micro_batches = run["global_batch"] // run["micro_batch"]
    operations = _count(config, stage) * micro_batches
    lines = [
        f"stage            {config['stage']['name']}",
        f"clip             {data['num_frames']} frames {data['height']}x{data['width']} "
        f"at {data['fps']:g} fps",
        *(_latent(frozen) if frozen else ()),
        f"parameters       {trained:,} trained"
        + (f", {_size(frozen):,} frozen in the tokenizer" if stage_2 and frozen else ""),
        f"operations       {operations / 1e12:.4g} TFLOP per step "
        f"({run['global_batch']} clips, forward and backward)",
        f"memory           weights, gradients, AdamW and average, GiB per worker of {workers}, "
        "without activations:",
    ]
    for precision in ("fp32", "bf16"):
        sizes = [_state_bytes(trained, zero, workers, precision) / 2**30 for zero in range(4)]
        shown = "  ".join(f"ZeRO-{zero} {size:.3g}" for zero, size in enumerate(sizes))
        lines.append(f"  {precision}           {shown}")
    return "\n".join(lines)


def _latent(tokenizer: Any) -> list[str]:
    rungs = sum(rung.scale.volume for rung in tokenizer.schedule.rungs)
    return [
        f"latent           {tokenizer.channels} channels x {tokenizer.latent_size} "
        f"= {tokenizer.latent_size.volume} tokens",
        f"scales           {tokenizer.schedule} = {rungs} tokens of {tokenizer.codec.levels} codes "
        "per channel",
    ]


def _state_bytes(parameters: int, zero_stage: int, workers: int, precision: str) -> float:
    """Bytes a worker holds; bf16 keeps a float32 master copy beside the two moments."""
    weights, gradients, optimizer = (4, 4, 8) if precision == "fp32" else (2, 2, 12)
    average = 4
    share = [
        optimizer / (workers if zero_stage >= 1 else 1),
        gradients / (workers if zero_stage >= 2 else 1),
        (weights + average) / (workers if zero_stage >= 3 else 1),
    ]
    return parameters * sum(share)


def _count(config: Mapping[str, Any], stage: Any) -> float:
    """Operations of a micro-batch through the stage, forward and backward, on meta tensors."""
    device = torch.device("meta")
    names = ("num_frames", "fps", "height", "width")
    window = Window(**{name: config["data"][name] for name in names})
    count, layout = config["run"]["micro_batch"], config["data"]["layout"]
    lineage = read_lineage(config["data"]["path"]) if config["generator"] else None
    if lineage is None:
        batch = fake_batch(window, count, device, layout=layout)
    else:  # encoding is no part of the step
        batch = fake_latents(lineage.layout, count, device, layout=layout)
    with FlopCounterMode(display=False) as counter:
        prediction = stage(stage.example(batch, Draws(0, batch.positions.tolist(), device)))
        loss, _ = build_objective(config)(prediction, batch)
        loss.backward()
    return float(counter.get_total_flops())


def fake_batch(
    window: Window, count: int, device: torch.device, *, layout: bool = False
) -> VideoBatch:
    """A batch of the right shape, with a layout if wanted."""
    T, H, W = window.num_frames, window.height, window.width
    grid = (T, H // MOTION_STRIDE, W // MOTION_STRIDE)
    return VideoBatch(
        pixels=torch.empty(count, 3, T, H, W, device=device),
        fps=torch.empty(count, device=device),
        captions=(CAPTION,) * count,
        positions=torch.arange(count),
        keys=("",) * count,
        motion=torch.empty(count, 2, *grid, device=device),
        motion_confidence=torch.empty(count, 1, *grid, device=device),
        layout=_fake_layout(count, T, device) if layout else None,
    )


def fake_latents(
    member: LatentLayout, count: int, device: torch.device, *, layout: bool = False
) -> LatentBatch:
    """`fake_batch` of a data set of latents."""
    text = (count, member.text_tokens, member.text_width)
    arrays = {
        name: torch.empty(count, *shape[1:], device=device) for name, shape in member.shapes.items()
    }
    return LatentBatch(
        latent=arrays["latent"],
        motion=arrays.get("motion"),
        motion_confidence=arrays.get("motion_confidence"),
        captions=(CAPTION,) * count,
        positions=torch.arange(count),
        keys=("",) * count,
        text=torch.empty(text, device=device) if member.text_width else None,
        text_mask=torch.ones(text[:2], dtype=torch.bool, device=device)
        if member.text_width
        else None,
        layout=_fake_layout(count, member.size[0], device) if layout else None,
    )


def _fake_layout(count: int, frames: int, device: torch.device) -> Layout:
    return Layout(
        boxes=torch.empty(count, MAX_OBJECTS, frames, 4, device=device),
        present=torch.ones(count, MAX_OBJECTS, dtype=torch.bool, device=device),
        labels=((LABELS[0],) * MAX_OBJECTS,) * count,
    )


def _size(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
