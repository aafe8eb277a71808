"""What a run was made with: versions, code, hardware, data and tokenizer, written beside it."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "deepspeed", "transformers", "av", "hydra-core", "numpy")


def environment() -> dict[str, Any]:
    """Versions, commit and hardware of this process."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": _commit(),
        "machine": {"cpus": os.cpu_count(), "processor": _processor(), "gpus": gpus},
    }


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def vae_identity(pretrained: str, subfolder: str | None, revision: str | None) -> str:
    """Of the VAE that a tokenizer is built on: a digest of its files in a folder, or the commit of
    the hub's repository; no weights are fetched.

    Raises:
        ValueError: there is none.
    """
    from hstvg.tokenizer.pretrained import fetch, vae_files

    folder = fetch(pretrained, subfolder, revision, weights=False)
    if not Path(pretrained).is_dir():
        commit = folder.parts[-1 - len(Path(subfolder or "").parts)]
        return f"{pretrained}@{commit}/{subfolder or ''}"
    said = "".join(f"{path.name}={file_hash(path)};" for path in vae_files(folder))
    return "sha256:" + hashlib.sha256(said.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
