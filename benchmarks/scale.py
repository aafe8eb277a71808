"""What the index and the plan cost as a data set grows.

    python -m benchmarks.scale [largest power of ten]

Data sets of 10^4, 10^5, ... samples of which only the index exists, each in a process of its own.
Read is opening the index as the driver does, all columns; plan is assigning three buckets and
drawing what the first step needs; first tasks is naming the samples of the first thousand steps of
two workers; first batch is all of it and reading eight samples, which here lie in one real shard.
Memory is what the process had at its largest beyond what it had after its imports, with the plan
alone and with the index. The ratio is
to the size before, for ten times the samples: 10 is linear.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CAPTION = "a red circle moves slowly up and to the left and a blue square moves down"
CLIPS_PER_SHARD = 256


def main(largest: int) -> None:
    before: dict[str, float] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for power in range(4, largest + 1):
            data = Path(folder) / str(power)
            make_index(data, 10**power)
            command = [sys.executable, "-m", "benchmarks.scale", "--measure", str(data)]
            found = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            now = json.loads(found.decode().splitlines()[-1])
            size = (data / "index.parquet").stat().st_size
            print(f"10^{power} samples, index.parquet of {size / 1e6:.1f} MB")
            for name, value in now.items():
                unit = "MB" if "memory" in name else "s"
                ratio = f"  x{value / before[name]:.1f}" if before and before[name] else ""
                print(f"  {name:<12}{value:>10.2f} {unit}{ratio}", flush=True)
            before = now
            (data / "index.parquet").unlink()


def measure(data: Path) -> dict[str, float]:
    import ray.data  # noqa: F401  its imports are no cost of the plan

    from hstvg.runtime.config import DataFacts, RunFacts
    from hstvg.runtime.reader import references
    from hstvg.runtime.stream import open_feed, rounds

    run = RunFacts(name="run", steps=10_000, global_batch=64, micro_batch=8)
    window: dict[str, Any] = {"num_frames": 16, "fps": 8.0, "height": 32, "width": 32}
    buckets = ["16x32x32", "16x32x48", "16x48x32"]
    facts = DataFacts(path=str(data), motion=False, buckets=buckets, **window)
    base, start = peak_mb(), time.monotonic()
    feed = open_feed(run, facts)
    batch = feed.plan.batch(0)
    planned, plan_mb = time.monotonic(), peak_mb()
    table = feed.index.table
    read = time.monotonic()
    blocks = list(rounds(feed.plan, 2, begin=0, end=1000, block_mb=96))
    assert sum(len(part.rows) for parts in blocks for block in parts for part in block) > 40_000
    tasks = time.monotonic()
    arrays = feed.reader()(references(table.take(batch.rows), batch.positions, batch.bucket))
    assert not any(arrays["reason"])
    return {
        "plan": planned - start,
        "read": read - planned,
        "first tasks": tasks - read,
        "first batch": time.monotonic() - start,
        "plan memory": plan_mb - base,
        "all memory": peak_mb() - base,
    }


def peak_mb() -> float:
    # Not getrusage: that remembers the parent's size from before this program was loaded.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def make_index(folder: Path, count: int) -> None:
    """The index of `count` samples that are all one sample of a real shard."""
    import pyarrow as pa

    from hstvg.runtime.index import SCHEMA, write_table
    from hstvg.runtime.shard import write_shard
    from hstvg.runtime.source import ShapeSource

    (folder / "shards").mkdir(parents=True)
    source = ShapeSource(num_clips=1)
    first = folder / "shards" / "000000.tar"
    (row,) = write_shard(first, [source.sample(item) for item in source.items()])
    names = [f"shards/{number:06d}.tar" for number in range(-(-count // CLIPS_PER_SHARD))]
    for name in names[1:]:
        os.link(first, folder / name)
    number = np.arange(count)
    rng = np.random.default_rng(0)
    sides = rng.choice([32, 48, 64], size=(2, count))
    columns = {
        field.name: pa.repeat(pa.scalar(row[field.name], field.type), count) for field in SCHEMA
    }
    columns["shard"] = pa.array(names).take(pa.array(number // CLIPS_PER_SHARD))
    columns["key"] = pa.array(np.char.mod("%010d", number))
    columns["caption"] = pa.repeat(pa.scalar(CAPTION), count)
    # No two alike, as checksums are; they are those of members that the samples do not have.
    columns["json_checksum"] = digests(rng, count)
    columns["json_size"] = pa.repeat(pa.scalar(0, pa.int64()), count)
    columns["split"] = pa.repeat(pa.scalar("train"), count)
    columns["width"], columns["height"] = (pa.array(side, pa.int32()) for side in sides)
    write_table(folder, pa.table(columns, schema=SCHEMA))


def digests(rng: np.random.Generator, count: int) -> Any:
    import pyarrow as pa

    text = rng.bytes(32 * count).hex().encode()
    ends = np.arange(count + 1, dtype=np.int32) * 64
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(text))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
