"""From prompts to files on disk, with a trained run."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from hstvg.data.video import encode_gif, encode_video
from hstvg.generate.workflow import write_clips
from hstvg.generator.generator import Sampling
from hstvg.runtime.assemble import open_run
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.worker_local import pick_device


def generate(config: dict[str, Any]) -> list[Path]:
    """Write one video for `prompt`, or one per line of the file `prompts`; returns the files.

    Raises:
        ConfigError: no prompt, a run without a generator, or what this generator cannot do.
    """
    prompts, files = _jobs(config)
    model = open_run(config["run"])
    if model.generator is None:
        raise ConfigError(f"{config['run']} is a tokenizer's run; name a run of stage=generator")
    num_frames = _frames(config, model.window.num_frames, model.window.fps)
    if config["kappa"]:
        raise ConfigError(
            f"kappa={config['kappa']}: this run has no next-scale transformer; use kappa=0"
        )
    if config["dry_run"]:
        print(f"{len(prompts)} videos of {num_frames} frames at {model.window.fps:g} fps")
        return []
    device = pick_device(config["device"])
    for first in range(0, len(prompts), config["batch"]):
        part = slice(first, first + config["batch"])
        clips = write_clips(
            model,
            prompts[part],
            seed=config["seed"],
            first=first,
            settings=Sampling.of(config),
            device=device,
        )
        for clip, file, prompt in zip(clips, files[part], prompts[part], strict=True):
            write_video(clip[:num_frames], model.window.fps, file, config)
            if config["prompts"]:
                file.with_suffix(".txt").write_text(prompt + "\n")
            print(file, flush=True)
    return files


def write_video(clip: np.ndarray, fps: float, file: Path, config: dict[str, Any]) -> None:
    """Write an MP4, and a GIF beside it if asked; whole or not at all."""
    scale = config["upscale"]
    frames = np.ascontiguousarray(clip.repeat(scale, axis=1).repeat(scale, axis=2))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(encode_video(frames, fps))
    partial.replace(file)
    if config["gif"]:
        file.with_suffix(".gif").write_bytes(encode_gif(frames, fps))


def _jobs(config: dict[str, Any]) -> tuple[list[str], list[Path]]:
    out = Path(config["out"])
    if (config["prompt"] is None) == (config["prompts"] is None):
        raise ConfigError('give either prompt="..." or prompts=FILE')
    if config["prompt"] is not None:
        if out.suffix != ".mp4":
            raise ConfigError(f"out={out}: the video of a prompt is an .mp4 file")
        return [_clean(config["prompt"])], [out]
    source = Path(config["prompts"])
    if not source.is_file():
        raise ConfigError(f"prompts={source} does not exist")
    prompts = [_clean(line) for line in source.read_text().splitlines() if line.strip()]
    if not prompts:
        raise ConfigError(f"prompts={source} holds no prompt")
    return prompts, [out / f"{number:04d}.mp4" for number in range(len(prompts))]


def _clean(prompt: str) -> str:
    return re.sub(r"[\s\x00-\x1f]+", " ", prompt).strip()[:1000]


def _frames(config: dict[str, Any], block_frames: int, fps: float) -> int:
    if config["duration_s"] is None:
        return block_frames
    wanted = round(config["duration_s"] * fps)
    if not 1 <= wanted <= block_frames:
        raise ConfigError(
            f"duration_s={config['duration_s']:g}: this generator writes one block of up to "
            f"{block_frames / fps:g} s; give at most that"
        )
    return wanted
