"""What the platform costs per step: Ray + DeepSpeed + tracking against a bare torch loop.

    python -m benchmarks.train_step [steps]

Both train the same generator stage on the same clips of the shape world in float32, one process,
with as many torch threads. Two baselines, measured before and after the platform's run:

    bare         forward, backward, clip, AdamW on clips decoded in the loop, as a small script does
    bare, ready  the same with all clips decoded beforehand: no data work at all

The ratio is baseline seconds over platform seconds per step, of the medians: 1 costs nothing.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SKIP = 10
"""Steps at the start that are not counted."""


def main(steps: int) -> None:
    import torch

    from hstvg.runtime.assemble import settle
    from hstvg.runtime.config import compose
    from hstvg.runtime.ingest import ingest
    from hstvg.runtime.launch import run_training
    from hstvg.runtime.source import ShapeSource
    from hstvg.runtime.track_jsonl import read_metrics

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        data, root = Path(folder) / "data", Path(folder) / "runs"
        ingest(ShapeSource(num_clips=512, max_shapes=1), data, clips_per_shard=128)
        common = [f"data.path={data}", f"run.root={root}", "run.micro_batch=16"]
        common += [
            "run.global_batch=16",
            f"run.steps={steps}",
            f"run.checkpoint_every={10 * steps}",
        ]
        run_training(compose("train", [*common, "run.name=tok", "run.steps=2", "worker=local"]), [])
        arguments = [
            *common,
            "stage=generator",
            f"tokenizer_run={root / 'tok'}",
            "run.name=platform",
        ]
        config = settle(compose("train", arguments))

        before = bare(config, steps)
        run_training(compose("train", arguments), [])
        after = bare(config, steps)
        lines = read_metrics(root / "platform" / "metrics.jsonl")[SKIP:-1]
        platform = statistics.median(line["perf/step_s"] for line in lines)
        print(f"platform      {platform:.4f} s/step")
        for name in before:
            baseline = statistics.mean([before[name], after[name]])
            shown = f"{before[name]:.4f} and {after[name]:.4f} s/step"
            print(f"{name:<13} {shown}  ratio {baseline / platform:.2f}")


def bare(config: dict[str, Any], steps: int) -> dict[str, float]:
    """Median seconds per step of both bare loops."""
    ready = list(_batches(config, steps))
    return {
        "bare": _loop(config, _batches(config, steps)),
        "bare, ready": _loop(config, iter(ready)),
    }


def _loop(config: dict[str, Any], batches: Iterator[Any]) -> float:
    import torch

    from hstvg.paths.draws import Draws
    from hstvg.runtime.assemble import build_objective, build_stage, frozen_tokenizer

    stage = build_stage(config, frozen_tokenizer(config))
    assert isinstance(stage, torch.nn.Module)
    objective = build_objective(config)
    optimizer = torch.optim.AdamW(stage.parameters(), lr=config["optimizer"]["lr"])
    seconds = []
    start = time.monotonic()
    for batch in batches:
        example = stage.example(batch, Draws(0, batch.positions.tolist(), torch.device("cpu")))
        loss, _ = objective(stage(example), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.monotonic() - start)
        start = time.monotonic()
    return statistics.median(seconds[SKIP:])


def _batches(config: dict[str, Any], steps: int) -> Iterator[Any]:
    import torch

    from hstvg.runtime.launch import open_stream
    from hstvg.runtime.worker_local import LocalWorker

    worker = LocalWorker(Path(config["run_dir"]), device=torch.device("cpu"), keep=1)
    stream = open_stream(config, worker, None).train(first_step=0)
    for _ in range(steps):
        yield next(stream)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
