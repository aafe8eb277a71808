"""A training run from its config: the run folder, the workers, the loop, the export."""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hstvg.data.video import encode_video
from hstvg.generate.bundle import VideoModel, load_model, save_model
from hstvg.generate.workflow import to_frames, write_clips
from hstvg.runtime import flops, preflight
from hstvg.runtime.assemble import (
    build_objective,
    build_stage,
    files_of_terms,
    frozen_tokenizer,
    run_facts,
    settle,
    with_adversary,
)
from hstvg.runtime.config import build, config_hash
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.index import read_index
from hstvg.runtime.lineage import environment, file_hash, vae_identity, write_json
from hstvg.runtime.order import OrderLog
from hstvg.runtime.quarantine import Quarantine
from hstvg.runtime.stream import WorkerStream, open_feed
from hstvg.runtime.track_jsonl import JsonlTracker, SilentTracker
from hstvg.train.ema import Ema
from hstvg.train.loop import Facts, train
from hstvg.train.ports import Tracker, Worker
from hstvg.types import TrainingBatch, VideoBatch

RESUME_MAY_CHANGE = {
    "run": {
        "steps",
        "micro_batch",
        "checkpoint_every",
        "keep_checkpoints",
        "validate_every",
        "validate_clips",
        "sample_clips",
        "log_every",
        "log_samples",
        "gradients_every",
        "compile",
        "root",
    },
    # The data set is known by the hash of its index.
    "data": {"path", "prefetch", "block_mb", "decoder", "max_bad_fraction"},
}
"""Facts that the same run may be given anew; with any other change it would be another run."""
RESUME_MAY_CHANGE_WHOLE = {
    # A checkpoint holds whole tensors: any number of workers of any engine may go on from it.
    "worker",
    "engine",
    "audit",
    "tracker",
    "run_dir",
    "tokenizer_run",
    "dry_run",
}


def run_training(config: dict[str, Any], overrides: list[str]) -> dict[str, float]:
    """Train a run to its last step, or go on with it; returns its last held-out values.

    Raises:
        ConfigError: the config is wrong, or differs from that of the run it would go on with.
    """
    config = settle(config)
    if config["dry_run"]:
        print(flops.dry_run(config))
        if not config["data"]["path"].endswith("???"):  # a dry run may leave it out
            print(preflight.describe(config))
        return {}
    read_index(config["data"]["path"])
    launcher = build(config["worker"])
    preflight.check(config)
    launcher.check()
    _open_folder(config, overrides)
    try:
        held_out = launcher.launch(config, run_worker)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise
    print(f"run {config['run_dir']} done at step {config['run']['steps']}", flush=True)
    return held_out


def run_worker(config: dict[str, Any], worker: Worker, shard: Any) -> None:
    """What every worker does: build, spread over the engine, train."""
    torch.manual_seed(config["run"]["seed"])
    run, _ = run_facts(config)
    accumulation = run.global_batch // (worker.world_size * run.micro_batch)
    stage = build_stage(config, frozen_tokenizer(config))
    assert isinstance(stage, torch.nn.Module)
    stage.to(worker.device)
    if run.compile:
        stage.compile()
    optimizer = torch.optim.AdamW(
        [weight for weight in stage.parameters() if weight.requires_grad],
        lr=config["optimizer"]["lr"],
        betas=(config["optimizer"]["beta1"], config["optimizer"]["beta2"]),
        weight_decay=config["optimizer"]["weight_decay"],
        fused=worker.device.type == "cuda",
    )
    engine = build(config["engine"]).start(
        stage,
        optimizer=optimizer,
        device=worker.device,
        accumulation=accumulation,
        micro_batch=run.micro_batch,
        clip_norm=config["optimizer"]["clip_norm"],
    )
    engine = with_adversary(config, engine, worker)
    stream = open_stream(config, worker, shard)
    tracker = _tracker(config, worker)

    def publish(weights: dict[str, Tensor], step: int) -> None:
        model = export(config, stage, weights, step)
        if model is not None:
            show_samples(model, step, run.sample_clips, stream, tracker)

    try:
        train(
            _facts(config, accumulation, worker.device),
            stage=stage,
            objective=build_objective(config),
            engine=engine,
            ema=Ema(engine.weights(), config["optimizer"]["ema_decay"]),
            worker=worker,
            tracker=tracker,
            stream=stream,
            export=publish,
        )
    finally:
        tracker.close()


def export(
    config: Mapping[str, Any],
    stage: Any,
    weights: Mapping[str, Tensor],
    step: int,
) -> VideoModel | None:
    """Write the averaged weights as a bundle and load it, if it is of a model of videos."""
    folder = Path(config["run_dir"]) / "export"
    window = {name: config["data"][name] for name in ("num_frames", "fps", "height", "width")}
    if config["stage"]["name"] == "features":
        node = {"stage": "features", "step": step, "window": window}
        node |= {"tokenizer": None, "generator": None, **config["stage"]["module"]}
        del node["_target_"]
        save_model(folder, node, weights, _card(config, step))
        return None
    node = {
        "stage": config["stage"]["name"],
        "step": step,
        "window": window,
        "tokenizer": stage.tokenizer.portable(config["tokenizer"]),
        "generator": config["generator"],
    }
    whole = dict(weights)
    if config["stage"]["name"] == "generator":
        frozen = stage.tokenizer.state_dict()
        whole |= {f"tokenizer.{name}": value.cpu() for name, value in frozen.items()}
    save_model(folder, node, whole, _card(config, step))
    return load_model(folder)


def show_samples(
    model: VideoModel, step: int, count: int, stream: WorkerStream, tracker: Tracker
) -> None:
    """The same few held-out clips or captions at every checkpoint, to watch a run learn."""
    if not count:
        return
    batch = next(stream.held_out())
    captions = batch.captions[:count]
    model.to(stream.device)
    if model.generator is None:
        with torch.no_grad():
            z = model.tokenizer.encode(_pixels(batch)[:count])
            clips = to_frames(model.tokenizer.decode(z))
    else:
        clips = write_clips(model, captions, seed=0, device=stream.device)
    with tempfile.TemporaryDirectory() as folder:
        for number, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
            file = Path(folder) / "clip.mp4"
            file.write_bytes(encode_video(clip, model.window.fps))
            file.with_suffix(".txt").write_text(caption + "\n")
            tracker.video(step, f"step_{step:09d}_{number}", file)


def _pixels(batch: TrainingBatch) -> Tensor:
    """Of the clips of a tokenizer's run, which is never trained on latents."""
    assert isinstance(batch, VideoBatch)
    return batch.pixels


def _open_folder(config: dict[str, Any], overrides: list[str]) -> None:
    """Make the run folder, or check that the one that is there is of the same run."""
    folder = Path(config["run_dir"])
    lineage = _lineage(config)
    recorded = folder / "config.yaml"
    if recorded.is_file() and any((folder / "checkpoints").glob("step_*")):
        old = yaml.safe_load(recorded.read_text())
        differing = _differences(old, config)
        micro = [settings["run"]["micro_batch"] for settings in (old, config)]
        if config["data"]["buckets"] and micro[0] != micro[1]:  # it decides their global batches
            differing.append(f"run.micro_batch was {micro[0]}, now {micro[1]}, with data.buckets")
        if differing:
            raise ConfigError(
                f"{folder} was trained with other settings ({'; '.join(differing[:4])}); "
                "give another run.name or the settings it had"
            )
        _check_lineage(folder, lineage)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    partial = recorded.with_suffix(".partial")
    partial.write_text(yaml.safe_dump(config, sort_keys=False))
    partial.replace(recorded)
    (folder / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides))
    write_json(folder / "env.json", environment())
    write_json(folder / "lineage.json", lineage)


def _check_lineage(folder: Path, lineage: Mapping[str, Any]) -> None:
    """Raises ConfigError unless data and tokenizer are those that the run began with."""
    before = json.loads((folder / "lineage.json").read_text())
    kinds = {
        "data": ("index", "data.path"),
        "tokenizer": ("weights", "tokenizer_run"),
        "vae": ("identity", "tokenizer.pretrained"),
        "terms": ("files", "objective.terms"),
    }
    for kind, (digest, key) in kinds.items():
        if before.get(kind, {}).get(digest) != lineage.get(kind, {}).get(digest):
            raise ConfigError(
                f"{folder} was trained with another {digest} of its {kind}; give another run.name, "
                f"or the {key} it had"
            )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        path = f"{prefix}{key}"
        if not prefix and key in RESUME_MAY_CHANGE_WHOLE:
            continue
        if prefix and key in RESUME_MAY_CHANGE.get(prefix.rstrip("."), ()):
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{path}.")
        elif before != after:
            found.append(f"{path} was {before}, now {after}")
    return found


def _lineage(config: Mapping[str, Any]) -> dict[str, Any]:
    lineage = {
        "config": config_hash(config),
        "data": {"path": config["data"]["path"], "index": read_index(config["data"]["path"]).hash},
    }
    files = [Path(term[name]) for term, name in files_of_terms(config)]
    files = [file / "model.safetensors" if file.is_dir() else file for file in files]
    if files:
        lineage["terms"] = {"files": {str(file): file_hash(file) for file in files}}
    if config["tokenizer"] is None:
        return lineage
    if config["tokenizer_run"]:
        weights = Path(config["tokenizer_run"]) / "export" / "model.safetensors"
        lineage["tokenizer"] = {"run": config["tokenizer_run"], "weights": file_hash(weights)}
    source = [config["tokenizer"].get(key) for key in ("pretrained", "subfolder", "revision")]
    if source[0]:
        try:
            identity = vae_identity(*source)
        except ValueError as error:
            raise ConfigError(f"tokenizer.pretrained: {error}") from error
        lineage["vae"] = {"pretrained": source[0], "identity": identity}
    return lineage


def open_stream(config: Mapping[str, Any], worker: Worker, shard: Any) -> WorkerStream:
    """The clips of a worker; without `shard`, Ray Data's iterator, decoded in this process."""
    run, data = run_facts(config)
    feed, run_dir = open_feed(run, data), Path(config["run_dir"])
    quarantine = Quarantine(
        run_dir,
        max_fraction=data.max_bad_fraction,
        epoch_clips=len(feed.index.rows_of("train")),
        rank=worker.rank,
        say=worker.say,
    )
    return WorkerStream(
        feed=feed,
        run=run,
        data=data,
        rank=worker.rank,
        world_size=worker.world_size,
        device=worker.device,
        quarantine=quarantine,
        order=OrderLog(run_dir, keep=run.log_samples),
        shard=shard,
    )


def _tracker(config: Mapping[str, Any], worker: Worker) -> Tracker:
    if worker.rank != 0:
        return SilentTracker()
    folder = Path(config["run_dir"])
    mirror = None
    if config["tracker"]["mirror"]:
        # Hydra would build every node of the config that it passed on, so the call is Python's.
        mirror = build({**config["tracker"]["mirror"], "_partial_": True})(
            run_name=config["run"]["name"], run_dir=folder, config=config
        )
    return JsonlTracker(folder, mirror=mirror)


def _facts(config: Mapping[str, Any], accumulation: int, device: torch.device) -> Facts:
    run, optimizer = config["run"], config["optimizer"]
    peak = flops.peak(device)
    return Facts(
        steps=run["steps"],
        seed=run["seed"],
        global_batch=run["global_batch"],
        accumulation=accumulation,
        checkpoint_every=run["checkpoint_every"],
        validate_every=run["validate_every"],
        log_every=run["log_every"],
        gradients_every=run["gradients_every"],
        lr=optimizer["lr"],
        warmup_steps=optimizer["warmup_steps"],
        final_lr_ratio=optimizer["final_lr_ratio"],
        flops_per_step=flops.step_flops(config) * accumulation if peak else None,
        peak_flops=peak,
    )


def _card(config: Mapping[str, Any], step: int) -> str:
    """The model card: what it is and how to load it."""
    if config["stage"]["name"] == "features":
        kind, module, load = "network of clip features", "nn.features", "load_features"
    else:
        kind = f"video {config['stage']['name']}"
        module, load = "generate.bundle", "load_model"
    data = config["data"]
    return (
        f"# {config['run']['name']}\n\n"
        f"A {kind} trained with HSTVG for {step} steps of {config['run']['global_batch']} clips "
        f"({data['num_frames']} frames of {data['height']}x{data['width']} at {data['fps']:g} fps) "
        f"from {Path(data['path']).name}. Averaged weights, float32, decay "
        f"{config['optimizer']['ema_decay']}.\n\n"
        f"```python\nfrom hstvg.{module} import {load}\n"
        f'model = {load}("export")\n```\n\n'
        "Its licence is that of the footage it was trained on.\n"
    )
