"""Whether the memory of a training run grows with the size of its shards.

    python -m benchmarks.shard_memory

The same 1 GB of clips as 64 shards of 16 MB and as 2 of 512 MB. The peak of the resident memory of
a worker that decodes in its own process, and of the unshared memory of the largest of Ray's data
tasks, over as many steps; and their ratio, large shards to small.
"""

import json
import logging
import subprocess
import sys
import tempfile
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

SIZES_MB = (16, 512)
TOTAL_MB = 1024
STEPS, BATCH = 64, 8
WINDOW: dict[str, Any] = {"num_frames": 16, "fps": 7.5, "height": 128, "width": 128}


def main() -> None:
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES_MB:
            data = Path(folder) / f"{size}"
            make_data(data, size)
            found[size] = {}
            for way in ("local", "ray"):
                command = [sys.executable, "-m", "benchmarks.shard_memory", way, str(data)]
                said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
                found[size][way] = json.loads(said.decode().splitlines()[-1])
                print(f"{size:>4} MB shards, {way:<5} {found[size][way]:>7.1f} MB", flush=True)
            for file in data.rglob("*.tar"):
                file.unlink()
    small, large = (found[size] for size in SIZES_MB)
    for way in small:
        print(f"ratio {way}: {large[way] / small[way]:.2f}")


def local(data: Path) -> float:
    """MB of this process, which decodes by itself."""
    stream = open_stream(data)
    batches = stream.arrays(first_step=0)
    for _ in islice(batches, STEPS):
        pass
    # Of this program alone; getrusage would remember its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def with_ray(data: Path) -> float:
    """MB of the largest of Ray's processes that read and decode."""
    import ray

    from hstvg.runtime.stream import open_feed, ray_dataset

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    run, facts = facts_of(data)
    dataset = ray_dataset(open_feed(run, facts), run, facts, world_size=1, first_step=0)
    dataset.context.execution_options.preserve_order = True
    (shard,) = dataset.streaming_split(1, equal=True)
    largest, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "MapBatches" in " ".join(process.cmdline()):
                        largest = max(largest, process.memory_full_info().uss / 1e6)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in islice(open_stream(data, shard).arrays(first_step=0), STEPS):
        pass
    done.set()
    thread.join()
    return largest


def facts_of(data: Path):
    from hstvg.runtime.config import DataFacts, RunFacts

    run = RunFacts(name="run", steps=STEPS, global_batch=BATCH, micro_batch=BATCH)
    return run, DataFacts(path=str(data), motion=False, block_mb=24, **WINDOW)


def open_stream(data: Path, shard: Any = None):
    import torch

    from hstvg.runtime.order import OrderLog
    from hstvg.runtime.quarantine import Quarantine
    from hstvg.runtime.stream import WorkerStream, open_feed

    run, facts = facts_of(data)
    return WorkerStream(
        feed=open_feed(run, facts),
        run=run,
        data=facts,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=Quarantine(data, max_fraction=0, epoch_clips=1, rank=0, say=print),
        order=OrderLog(data, keep=False),
        shard=shard,
    )


def make_data(folder: Path, shard_mb: int) -> None:
    """Clips of 500 kB: sixteen noisy ones, over and over."""
    import numpy as np

    from hstvg.data.video import encode_video
    from hstvg.runtime.index import write_index
    from hstvg.runtime.shard import Sample, write_shard

    (folder / "shards").mkdir(parents=True)
    rng = np.random.default_rng(0)
    facts = {"caption": "noise", "fps": 30.0, "num_frames": 64, "split": "train"}
    facts |= {"width": 128, "height": 128}
    noise = [rng.integers(0, 256, (64, 128, 128, 3), np.uint8) for _ in range(16)]
    videos = [encode_video(frames, 30.0, crf=27) for frames in noise]
    per_shard = round(shard_mb * 1e6 / (sum(map(len, videos)) / len(videos)))
    rows: list[dict[str, Any]] = []
    for number in range(TOTAL_MB // shard_mb):
        samples = (
            Sample(key=f"{number:04d}{i:06d}", video=videos[i % 16], facts=facts)
            for i in range(per_shard)
        )
        rows += write_shard(folder / "shards" / f"{number:06d}.tar", samples)
    write_index(folder, rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"local": local, "ray": with_ray}[sys.argv[1]](Path(sys.argv[2]))))
    else:
        main()
