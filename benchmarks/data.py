"""What the stream costs beside the usual ways to read the same shards, in one run.

    python -m benchmarks.data [clips] [repetitions]

H.264 clips of 256 x 256, 30 frames a second, 3 to 5 s; a sample is 16 frames at 7.5 a second from a
random place, as uint8 batches of 8. All ways decode with the same function, on two CPUs:

    bare        tarfile and PyAV in a loop, one process
    dataloader  the webdataset package in a DataLoader with 2 workers
    stream      hstvg's: by byte range, checked, in the order of the plan, through Ray Data
    naive       ray.data.read_webdataset, map, iter_batches
    decode      the same windows decoded with frames dropped, one process: what cannot be saved

wall is clips over all seconds; steady leaves out the first quarter of the clips, and with it the
start and what was ready in advance; CPU is that of all processes over the same clips, in ms per
clip; first is the seconds to the first batch. Each is the median of the repetitions, which take
turns.
"""

import io
import logging
import random
import statistics
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

WINDOW = {"num_frames": 16, "fps": 7.5, "height": 256, "width": 256}
BATCH = 8
CPUS = 2


def main(num_clips: int, repetitions: int) -> None:
    import ray

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_data(data)
        ray.init(num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ways: dict[str, Callable[[Path, int], Iterator[Any]]] = {
            "bare": bare,
            "dataloader": dataloader,
            "stream": stream,
            "naive": naive,
            "decode": decode_only,
        }
        for way in ways.values():
            list(way(data, BATCH * CPUS * 2))  # imports, caches, processes
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(repetitions):
            for name in random.sample(list(ways), len(ways)):
                measured[name].append(measure(ways[name](data, num_clips), num_clips))
        report(measured)


def measure(batches: Iterator[Any], num_clips: int) -> dict[str, float]:
    arrivals: list[float] = []
    quarter, used_s = num_clips // 4, 0.0
    with CpuMeter() as meter:
        start = time.monotonic()
        for batch in batches:
            touch(batch)
            arrivals += [time.monotonic() - start] * len(batch)
            if len(arrivals) == quarter:
                used_s = meter.used_s()
    assert len(arrivals) == num_clips, (len(arrivals), num_clips)
    return {
        "wall": num_clips / arrivals[-1],
        "steady": (num_clips - quarter) / (arrivals[-1] - arrivals[quarter - 1]),
        "cpu_ms": 1e3 * (meter.used_s() - used_s) / (num_clips - quarter),
        "first_s": arrivals[0],
    }


def report(measured: dict[str, list[dict[str, float]]]) -> None:
    def median(name: str, figure: str) -> float:
        return statistics.median(one[figure] for one in measured[name])

    print(f"{'':<12}{'wall':>8}{'steady':>8}{'CPU':>9}{'first':>8}   steady, each time")
    for name, rounds in measured.items():
        each = " ".join(f"{one['steady']:.1f}" for one in rounds)
        print(
            f"{name:<12}{median(name, 'wall'):>6.1f}/s{median(name, 'steady'):>6.1f}/s"
            f"{median(name, 'cpu_ms'):>6.1f} ms{median(name, 'first_s'):>6.2f} s   {each}"
        )
    for other in ("dataloader", "naive", "bare"):
        ratios = {
            figure: statistics.median(
                mine[figure] / its[figure]
                for mine, its in zip(measured["stream"], measured[other], strict=True)
            )
            for figure in ("steady", "wall", "cpu_ms")
        }
        print(
            f"stream / {other:<11} steady {ratios['steady']:.2f}  wall {ratios['wall']:.2f}  "
            f"CPU per clip {ratios['cpu_ms']:.2f}"
        )


def touch(batch: np.ndarray) -> None:
    """What a consumer does at least: look at every page of the batch."""
    batch.reshape(-1)[::4096].sum()


class CpuMeter:
    """CPU seconds of this process and all below it; looks often, so that none ends unseen."""

    def __enter__(self) -> "CpuMeter":
        self.before, self.latest = self._look(), {}
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def used_s(self) -> float:
        self.latest |= self._look()
        return sum(
            seconds - self.before.get(process, 0.0) for process, seconds in self.latest.items()
        )

    def _watch(self) -> None:
        while not self.done.wait(0.2):
            self.latest |= self._look()

    def _look(self) -> dict[tuple[int, float], float]:
        found = {}
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                found[process.pid, process.create_time()] = times.user + times.system
        return found


# ---- the ways ---------------------------------------------------------------------------------


def window(video: bytes, seed: int) -> np.ndarray:
    from hstvg.data.decode import decode_window

    start = random.Random(seed).uniform(0.0, 0.8)  # every clip lasts at least 3 s
    return decode_window(video, start_s=start, **WINDOW)


def bare(data: Path, num_clips: int) -> Iterator[np.ndarray]:
    yield from stack(window(video, i) for i, video in enumerate(videos(data, num_clips)))


def decode_only(data: Path, num_clips: int) -> Iterator[np.ndarray]:
    import av

    def frames(video: bytes) -> np.ndarray:
        with av.open(io.BytesIO(video)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, _ in enumerate(container.decode(video=0)):
                if number >= 75:  # from a start at 0.4 s on average, 15 steps of 4 frames
                    break
        return np.zeros(1, np.uint8)

    yield from stack(frames(video) for video in videos(data, num_clips))


def dataloader(data: Path, num_clips: int) -> Iterator[np.ndarray]:
    import torch
    import webdataset as wds

    def decode(sample: dict[str, Any]) -> np.ndarray:
        return window(sample["mp4"], hash(sample["__key__"]))

    shards = [str(path) for path in sorted((data / "shards").glob("*.tar"))]
    dataset = wds.WebDataset(  # pyright: ignore[reportPrivateImportUsage]
        shards, shardshuffle=len(shards), nodesplitter=None
    ).repeat()
    dataset = dataset.shuffle(64).map(decode).batched(BATCH, collation_fn=np.stack)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=CPUS, prefetch_factor=2
    )
    for number, batch in enumerate(loader, start=1):
        yield batch.numpy()
        if number * BATCH >= num_clips:
            return


def stream(data: Path, num_clips: int) -> Iterator[np.ndarray]:
    import torch

    from hstvg.runtime.config import DataFacts, RunFacts
    from hstvg.runtime.order import OrderLog
    from hstvg.runtime.quarantine import Quarantine
    from hstvg.runtime.stream import WorkerStream, open_feed, ray_dataset

    run = RunFacts(
        name="run", steps=num_clips // BATCH, global_batch=BATCH, micro_batch=BATCH, seed=num_clips
    )
    facts = DataFacts(path=str(data), motion=False, **WINDOW)
    dataset = ray_dataset(open_feed(run, facts), run, facts, world_size=1, first_step=0)
    dataset.context.execution_options.preserve_order = True
    (shard,) = dataset.streaming_split(1, equal=True)
    worker = WorkerStream(
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
    batches = worker.arrays(first_step=0)
    for _ in range(run.steps):
        yield next(batches)["pixels"]


def naive(data: Path, num_clips: int) -> Iterator[np.ndarray]:
    import ray

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        return {"pixels": window(row["mp4"], hash(row["__key__"]))}

    shards = [str(path) for path in sorted((data / "shards").glob("*.tar"))]
    whole, rest = divmod(num_clips, 128)
    paths = shards * whole + shards[: -(-rest // 16)]
    dataset = ray.data.read_webdataset(paths, decoder=None, shuffle="files").map(decode)
    seen = 0
    for batch in dataset.iter_torch_batches(batch_size=BATCH):
        pixels = batch["pixels"].numpy()[: num_clips - seen]
        seen += len(pixels)
        yield pixels
        if seen >= num_clips:
            return


def stack(clips: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    held: list[np.ndarray] = []
    for clip in clips:
        held.append(clip)
        if len(held) == BATCH:
            yield np.stack(held)
            held = []


def videos(data: Path, num_clips: int) -> Iterator[bytes]:
    count = 0
    while True:
        for path in sorted((data / "shards").glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    if not member.name.endswith(".mp4"):
                        continue
                    file = tar.extractfile(member)
                    assert file is not None
                    yield file.read()
                    count += 1
                    if count == num_clips:
                        return


def make_data(folder: Path) -> None:
    """128 clips of moving texture in 8 shards, about 70 kB each."""
    from hstvg.data.video import encode_video
    from hstvg.runtime.index import write_index
    from hstvg.runtime.shard import Sample, write_shard

    (folder / "shards").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for shard in range(8):
        samples = []
        for number in range(16):
            num_frames = int(rng.integers(90, 151))
            facts = {
                "caption": f"clip {number}",
                "fps": 30.0,
                "num_frames": num_frames,
                "width": 256,
                "height": 256,
                "split": "train",
            }
            video = encode_video(texture(rng, num_frames), 30.0, crf=28)
            samples.append(Sample(key=f"{shard:03d}{number:03d}", video=video, facts=facts))
        rows += write_shard(folder / "shards" / f"{shard:06d}.tar", samples)
    write_index(folder, rows)
    size = sum(row["size"] for row in rows) / len(rows)
    print(f"128 clips of {size / 1e3:.0f} kB on average", flush=True)


def texture(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """A smooth random picture that drifts, with a disc that crosses it."""
    coarse = rng.random((10, 10, 3))
    tiles = np.kron(coarse, np.ones((64, 64, 1)))
    for axis in (0, 1):
        tiles = sum(np.roll(tiles, shift, axis) for shift in range(-24, 25, 4)) / 13
    speed = rng.uniform(-1.2, 1.2, size=2)
    y, x = np.mgrid[:256, :256]
    frames = np.empty((num_frames, 256, 256, 3), np.uint8)
    for t in range(num_frames):
        dy, dx = (192 + speed * t).astype(int) % 384
        frames[t] = 255 * tiles[dy : dy + 256, dx : dx + 256]
        disc = (x - (2 * t) % 256) ** 2 + (y - 128 - 60 * speed[0]) ** 2 < 900
        frames[t][disc] = 255 * coarse[0, 0]
    return frames


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(given + [768, 3][len(given) :]))
