"""What can be known of a run before any worker starts: whether it can be built, and its data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hstvg.data.decode import check_decoder
from hstvg.data.plan import Bucket, Plan
from hstvg.paths.draws import Draws
from hstvg.runtime.assemble import build_objective, build_stage, run_facts
from hstvg.runtime.config import build
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.flops import fake_batch
from hstvg.runtime.latents import check_latents
from hstvg.runtime.stream import bucket_windows, open_feed

INDEX_BYTES = 330
"""Of a row of the index in memory; captions of usual length."""


def check(config: Mapping[str, Any]) -> None:
    """Build everything once without memory, so that a wrong config dies here and not in a worker.

    Raises:
        ConfigError: something cannot be built, a bucket does not fit the model, or latents were not
            made for this run.
    """
    check_latents(config)
    build(config["engine"])
    check_gradients(config)
    try:
        check_decoder(config["data"]["decoder"])
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error
    build_objective(config)
    if config["adversary"] is not None:
        build(config["adversary"])
        if config["stage"]["name"] != "tokenizer":
            raise ConfigError(
                "adversary=... judges decoded pixels, which only stage=tokenizer has; leave it out"
            )
    _, data = run_facts(config)
    device = torch.device("meta")
    with device:
        stage = build_stage(config, build(config["tokenizer"]) if config["generator"] else None)
    for text, window in zip(data.buckets, bucket_windows(data), strict=False):
        batch = fake_batch(window, 1, device, layout=data.layout)
        try:
            stage(stage.example(batch, Draws(0, [0], device)))
        except (ValueError, RuntimeError) as error:
            cause = str(error).splitlines()[0]
            raise ConfigError(f"data.buckets: the model cannot take {text} ({cause})") from error


def check_gradients(config: Mapping[str, Any]) -> None:
    """Gradients at the trunk can be had as the run is made.

    Raises:
        ConfigError: they cannot.
    """
    every, engine = config["run"]["gradients_every"], config["engine"]
    zero = engine.get("options", {}).get("zero_optimization", {})
    if every < 0:
        raise ConfigError(f"run.gradients_every={every}: must be at least 0")
    if every and config["run"]["compile"]:
        raise ConfigError(
            "run.gradients_every: a compiled stage has no way from a term back to the trunk alone; "
            "set run.compile=false or run.gradients_every=0"
        )
    if every and zero.get("stage", engine.get("zero_stage")) == 3:
        raise ConfigError(
            "run.gradients_every: ZeRO 3 brings the weights of a head together for one backward "
            "pass, and each term needs one; set engine.zero_stage=2 or run.gradients_every=0"
        )


def describe(config: Mapping[str, Any]) -> str:
    """What the index says of the data of a run: buckets, epochs, bytes.

    Raises:
        ConfigError: there is no data set at data.path, or a bucket is none.
    """
    run, data = run_facts(config)
    feed = open_feed(run, data)
    plan, index = feed.plan, feed.index
    with torch.device("meta"):
        strides = build(config["tokenizer"]).strides if config["tokenizer"] else (1, 1, 1)
    rows = index.rows_of("train")
    lines = [f"data             {len(rows):,} of {len(index):,} clips are for training"]
    filled = {bucket.window: bucket for bucket in plan.buckets}
    for window in bucket_windows(data):
        name = f"{window.num_frames}x{window.height}x{window.width}"
        if window not in filled:
            lines.append(f"  bucket {name:<12} empty: no clip suits it best")
            continue
        bucket = filled[window]
        tokens = window.num_pixels // int(np.prod(strides))
        lines.append(
            f"  bucket {name:<12} {len(bucket.rows):,} clips of {tokens:,} tokens, "
            f"{bucket.batch} a step, {len(bucket.rows) / bucket.batch:,.1f} steps an epoch"
        )
    steps = plan.steps_before(1000) / 1000
    lines.append(f"epoch            {steps:,.1f} steps; the run is {run.steps / steps:,.2f} epochs")
    sizes = index.take(rows[:: max(1, len(rows) // 1000)])
    member = float(np.mean(sizes.column("size").to_numpy() + sizes.column("json_size").to_numpy()))
    clips = plan.clips_before(1000) / 1000
    decoded = sum(b.clip_bytes * b.batch * _share(plan, b) for b in plan.buckets)
    lines.append(
        f"reading          {clips * member / 1e6:,.2f} MB from storage and {decoded / 1e6:,.1f} MB "
        "decoded per step; at n steps a second, n times that per second"
    )
    workers = config["worker"].get("num_workers", 1)
    store = workers * (2 + data.prefetch) * data.block_mb / 1e3 + len(index) * INDEX_BYTES / 1e9
    lines.append(
        f"object store     about {store:.2f} GB for {workers} workers: {data.prefetch} blocks of "
        f"{data.block_mb:g} MB held ready each, two more under way, and the index; "
        f"{len(index) * INDEX_BYTES / 1e6:,.1f} MB of memory in the driver"
    )
    return "\n".join(lines)


def _share(plan: Plan, bucket: Bucket) -> float:
    """The share of steps that train a bucket."""
    per_epoch = [len(b.rows) / b.batch for b in plan.buckets]
    return len(bucket.rows) / bucket.batch / sum(per_epoch)
