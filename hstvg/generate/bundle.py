"""The bundle: a trained model as model.safetensors + config.json, loadable with plain torch.

model = load_model("runs/demo/export")
clips = write_clips(model, ["a red circle moves right"], seed=0)
"""

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hstvg.data.sample import Window
from hstvg.generator.generator import Generator
from hstvg.tokenizer.scale_tokenizer import ScaleTokenizer

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class VideoModel:
    """A tokenizer, the generator trained on it (None after stage 1) and the clip they know."""

    tokenizer: ScaleTokenizer
    generator: Generator | None
    window: Window
    step: int

    def to(self, device: torch.device) -> "VideoModel":
        self.tokenizer.to(device)
        if isinstance(self.generator, nn.Module):
            self.generator.to(device)
        return self


def assemble(node: Any, **arguments: Any) -> Any:
    """Build a `_target_` node without Hydra; only this project's classes are called.

    Raises:
        ValueError: a target lies outside hstvg.
    """
    if isinstance(node, list):
        return [assemble(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    built = {key: assemble(value) for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return built
    module, _, name = node["_target_"].rpartition(".")
    if not module.startswith("hstvg."):
        raise ValueError(f"config.json names {node['_target_']}, which is no class of hstvg")
    target = getattr(importlib.import_module(module), name, None)
    if not isinstance(target, type) or target.__module__ != module:
        raise ValueError(f"config.json names {node['_target_']}, which is no class of hstvg")
    return target(**built, **arguments)


def assemble_model(config: Mapping[str, Any]) -> VideoModel:
    """The untrained model that a bundle's config describes.

    Raises:
        ValueError: it is no model of videos.
    """
    if config["tokenizer"] is None:
        raise ValueError(f"a bundle of stage={config['stage']} is no model of videos")
    tokenizer = assemble(config["tokenizer"])
    generator = None
    if config["generator"] is not None:
        generator = assemble(config["generator"], codec=tokenizer.codec)
    return VideoModel(
        tokenizer=tokenizer,
        generator=generator,
        window=Window(**config["window"]),
        step=config["step"],
    )


def save_model(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], card: str
) -> None:
    """Write a bundle; `weights` are named tokenizer.* and generator.*."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in weights.items()}
    partial = folder / ".model.safetensors.partial"
    save_file(tensors, partial)
    os.replace(partial, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"format": FORMAT, **config}, indent=1) + "\n")
    (folder / "README.md").write_text(card)


def load_model(folder: str | Path) -> VideoModel:
    """The model of a bundle, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: the folder is no bundle.
        ValueError: the weights do not fit the config.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder} is of format {config.get('format')}, not {FORMAT}")
    model = assemble_model(config)
    weights = load_file(folder / "model.safetensors")
    for name, module in {"tokenizer": model.tokenizer, "generator": model.generator}.items():
        if isinstance(module, nn.Module):
            _load(module, name, weights, folder)
    return model


def _load(module: nn.Module, name: str, weights: Mapping[str, Tensor], folder: Path) -> None:
    own = {
        key.removeprefix(f"{name}."): value
        for key, value in weights.items()
        if key.startswith(f"{name}.")
    }
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"{folder}: the weights of the {name} do not fit its config") from error
    module.eval().requires_grad_(False)
