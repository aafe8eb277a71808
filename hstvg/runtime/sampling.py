"""From prompts to files on disk, with a trained run."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from hstvg.data.given import read_given
from hstvg.data.video import encode_gif, encode_video
from hstvg.generate.bundle import VideoModel
from hstvg.generate.workflow import write_clips, write_scales
from hstvg.generator.generator import Generator, Sampling
from hstvg.runtime.assemble import open_run
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.worker_local import pick_device
from hstvg.scene.grammar import write_caption
from hstvg.scene.layout import Places, places
from hstvg.scene.syntax import Scene


def generate(config: dict[str, Any]) -> list[Path]:
    """Write one video for `prompt`, or one per line of the file `prompts`; returns the files.

    Raises:
        ConfigError: no prompt, a run without a generator, or what this generator cannot do.
    """
    scene = _scene(config)
    prompts, files = _jobs(config, scene)
    model = open_run(config["run"])
    if model.generator is None:
        raise ConfigError(f"{config['run']} is a tokenizer's run; name a run of stage=generator")
    settings = sampling_of(config)
    check_kappa(settings, model.generator)
    given, reference = _given(config, model), _reference(config, model)
    num_frames = _frames(config, model, 0 if given is None else len(given))
    shown = _places(scene, config, model, num_frames)
    if config["dry_run"]:
        print(f"{len(prompts)} videos of {num_frames} frames at {model.window.fps:g} fps")
        return []
    device = pick_device(config["device"])
    for first in range(0, len(prompts), config["batch"]):
        part = slice(first, first + config["batch"])
        with refusals():
            clips = _clips(
                model,
                prompts[part],
                first,
                num_frames,
                given,
                reference,
                shown,
                settings,
                config,
                device,
            )
        for clip, file, prompt in zip(clips, files[part], prompts[part], strict=True):
            write_video(clip, model.window.fps, file, config)
            if config["prompts"]:
                file.with_suffix(".txt").write_text(prompt + "\n")
            print(file, flush=True)
    return files


def _clips(
    model: VideoModel,
    prompts: list[str],
    first: int,
    num_frames: int,
    given: np.ndarray | None,
    reference: np.ndarray | None,
    shown: Places | None,
    settings: Sampling,
    config: Mapping[str, Any],
    device: torch.device,
) -> np.ndarray:
    """uint8 B T H W 3; with show_scales the scales of a video lie below one another."""
    if config["show_scales"]:
        levels = write_scales(
            model, prompts, seed=config["seed"], first=first, settings=settings, device=device
        )
        return np.concatenate(levels, axis=2)
    return write_clips(
        model,
        prompts,
        seed=config["seed"],
        first=first,
        settings=settings,
        num_frames=num_frames,
        given=None if given is None else given[None].repeat(len(prompts), axis=0),
        reference=None if reference is None else reference[None],
        shown=None if shown is None else [shown] * len(prompts),
        device=device,
    )


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


def _jobs(config: dict[str, Any], scene: Scene | None) -> tuple[list[str], list[Path]]:
    """Prompts and the files of their videos."""
    out = Path(config["out"])
    if config["prompt"] is not None and config["prompts"] is not None:
        raise ConfigError('give either prompt="..." or prompts=FILE')
    if config["prompts"] is None:
        prompt = config["prompt"]
        if prompt is None and scene is not None:
            prompt = write_caption(scene)
        if prompt is None:
            raise ConfigError('give prompt="...", prompts=FILE or scene=FILE')
        if out.suffix != ".mp4":
            raise ConfigError(f"out={out}: the video of a prompt is an .mp4 file")
        return [_clean(prompt)], [out]
    source = Path(config["prompts"])
    if not source.is_file():
        raise ConfigError(f"prompts={source} does not exist")
    prompts = [_clean(line) for line in source.read_text().splitlines() if line.strip()]
    if not prompts:
        raise ConfigError(f"prompts={source} holds no prompt")
    return prompts, [out / f"{number:04d}.mp4" for number in range(len(prompts))]


def _clean(prompt: str) -> str:
    return re.sub(r"[\s\x00-\x1f]+", " ", prompt).strip()[:1000]


def sampling_of(config: Mapping[str, Any]) -> Sampling:
    """Raises ConfigError where a setting is out of its range."""
    with refusals():
        return Sampling.of(config)


def _frames(config: Mapping[str, Any], model: VideoModel, given: int) -> int:
    """Of the video, the given ones included: those and a block, if nothing else is asked for."""
    block, fps = model.window.num_frames, model.window.fps
    if config["duration_s"] is None:
        return given + block
    wanted = round(config["duration_s"] * fps)
    if wanted < 1:
        raise ConfigError(f"duration_s={config['duration_s']:g} is shorter than a frame")
    if wanted <= given:
        raise ConfigError(
            f"duration_s={config['duration_s']:g}: the given frames are {given / fps:g} s already; "
            "give more"
        )
    assert model.generator is not None
    generator = model.generator
    if wanted > block and not generator.context_frames and generator.remember is None:
        raise ConfigError(
            f"duration_s={config['duration_s']:g}: this generator writes one block of up to "
            f"{block / fps:g} s; give at most that, or train one with generator.context_frames=1 "
            "or +history=paged"
        )
    if wanted > block and config["show_scales"]:
        raise ConfigError(f"show_scales=true shows one block, of up to {block / fps:g} s")
    return wanted


@contextmanager
def refusals() -> Iterator[None]:
    """What a generator refuses before it samples becomes a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_kappa(settings: Sampling, generator: Generator) -> None:
    """Raises ConfigError where a generator cannot write that many scales."""
    if settings.kappa not in (None, *generator.kappas):
        known = ", ".join(map(str, generator.kappas))
        raise ConfigError(
            f"kappa={settings.kappa}: of this run the next-scale transformer writes {known} "
            "scales; leave kappa out or give one of these"
        )


def check_able(key: str, model: VideoModel, able: Callable[[Generator], bool], unable: str) -> None:
    """Raises ConfigError where a run makes no clips, or its generator has no use for what a key
    gives.

    Args:
        unable: what is said of such a generator.
    """
    if model.generator is None:
        raise ConfigError(f"{key}: a tokenizer's run makes no clips")
    if not able(model.generator):
        raise ConfigError(f"{key}: this generator {unable}")


def check_style(key: str, model: VideoModel) -> None:
    unable = "is told its style in words alone; train one with +term=style"
    check_able(key, model, lambda generator: generator.takes_style, unable)


def check_guided(key: str, config: Mapping[str, Any]) -> None:
    """Raises ConfigError where a style is given weight that nothing shows, for want of a key."""
    if config["style_guidance"] != 1:
        raise ConfigError(
            f"style_guidance={config['style_guidance']:g} weighs a reference; give {key}, too"
        )


def check_layout(key: str, model: VideoModel) -> None:
    unable = "is told in words alone where things are; train one with +layout=boxes"
    check_able(key, model, lambda generator: generator.takes_layout, unable)


def _scene(config: Mapping[str, Any]) -> Scene | None:
    """What the file of a scene says."""
    file = _file_of("scene", config)
    if file is None:
        return None
    try:
        return Scene.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"scene={file}: {where or 'the file'}: {first['msg']}") from error


def _places(
    scene: Scene | None, config: Mapping[str, Any], model: VideoModel, num_frames: int
) -> Places | None:
    """Where its objects are in every frame of a clip."""
    if scene is None:
        return None
    check_layout(f"scene={config['scene']}", model)
    _refuse_scales(config, "shows clips of their prompts alone; leave out scene")
    window = model.window
    times = np.arange(num_frames) / window.fps
    return places(scene, times, aspect=window.width / window.height)


def _given(config: Mapping[str, Any], model: VideoModel) -> np.ndarray | None:
    """Frames that the clips begin with."""
    file = _file_of("given", config)
    if file is None:
        return None
    unable = "cannot go on from frames; train one with generator.context_frames=1"
    check_able(f"given={file}", model, lambda generator: generator.context_frames > 0, unable)
    _refuse_scales(config, "shows a clip from its beginning; leave out given")
    return _read_frames("given", file, model)


def _reference(config: Mapping[str, Any], model: VideoModel) -> np.ndarray | None:
    """Frames whose style is wanted."""
    file = _file_of("style_reference", config)
    if file is None:
        check_guided("style_reference=FILE", config)
        return None
    check_style(f"style_reference={file}", model)
    _refuse_scales(config, "shows clips in their own style; leave it out")
    return _read_frames("style_reference", file, model)


def _file_of(key: str, config: Mapping[str, Any]) -> Path | None:
    """The file that a key names; None where it names none."""
    if config[key] is None:
        return None
    file = Path(config[key])
    if not file.is_file():
        raise ConfigError(f"{key}={file} does not exist")
    return file


def _refuse_scales(config: Mapping[str, Any], why: str) -> None:
    """Raises ConfigError where scales are to be shown."""
    if config["show_scales"]:
        raise ConfigError(f"show_scales=true {why}")


def _read_frames(key: str, file: Path, model: VideoModel) -> np.ndarray:
    """Of a picture or video, at the size and rate of the generator."""
    try:
        return read_given(file.read_bytes(), model.window)
    except ValueError as error:
        raise ConfigError(f"{key}={file}: {error}") from error
