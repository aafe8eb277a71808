"""The stream: from an index to micro-batches of clips, in the order of the plan.

With Ray, data tasks read byte ranges of the shards and decode them; without, the same function
decodes in the worker's own process. Either way a worker gets exactly the positions it asked for,
and checks them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hstvg.data.plan import Plan, worker_positions
from hstvg.data.sample import Clip, Window, read_clip, to_batch
from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.errors import CommandError
from hstvg.runtime.index import DatasetIndex, read_index
from hstvg.types import VideoBatch

READ_COLUMNS = ["shard", "key", "offset", "size", "json_offset", "json_size", "caption"]
STEPS_PER_SEGMENT = 20_000
"""Steps that one execution of the Ray dataset covers; bounds the number of planned tasks."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What the stream draws from: the training rows of an index, their order and their window."""

    index: DatasetIndex
    plan: Plan
    rows: np.ndarray
    window: Window
    seed: int

    def table(self, positions: np.ndarray) -> Any:
        """Where the samples at `positions` lie, as an Arrow table with a position column."""
        rows = self.rows[self.plan.samples(positions)]
        return (
            self.index.table.select(READ_COLUMNS).take(rows).append_column("position", [positions])
        )

    def reader(self) -> "Reader":
        return Reader(root=self.index.root, window=self.window, seed=self.seed)


def open_feed(run: RunFacts, data: DataFacts) -> Feed:
    """The training clips of a run.

    Raises:
        ConfigError: there is no data set at data.path.
        CommandError: it has no training clips.
    """
    index = read_index(data.path)
    rows = index.rows_of("train")
    if not len(rows):
        raise CommandError(f"{data.path} has no clips in its train split; prepare more clips")
    return Feed(
        index=index,
        rows=rows,
        plan=Plan(num_samples=len(rows), seed=run.seed, identity=index.hash),
        window=window_of(data),
        seed=run.seed,
    )


def window_of(data: DataFacts) -> Window:
    return Window(num_frames=data.num_frames, fps=data.fps, height=data.height, width=data.width)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads and decodes a block of samples; runs inside data tasks."""

    root: Path
    window: Window
    seed: int

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns of references to columns of clips.

        A sample that cannot be decoded is replaced in place by its neighbour, so that every worker
        keeps its count; `damaged` names the cause and is empty otherwise.

        Raises:
            CommandError: no sample of the block can be decoded.
        """
        clips, damaged = [], []
        for i in range(len(block["key"])):
            try:
                clips.append(self._clip(block, i))
                damaged.append("")
            except (OSError, ValueError, KeyError) as error:
                clips.append(None)
                damaged.append(str(error).splitlines()[0][:200])
        whole = [i for i, clip in enumerate(clips) if clip is not None]
        if not whole:
            raise CommandError(
                f"none of {len(clips)} clips from {block['key'][0]} on can be read: {damaged[0]}"
            )
        nearest = [min(whole, key=lambda j: abs(j - i)) for i in range(len(clips))]
        chosen: list[Clip] = [clips[j] for j in nearest]
        return {
            "pixels": np.stack([clip.pixels for clip in chosen]),
            "motion": np.stack([clip.motion for clip in chosen]),
            "motion_confidence": np.stack([clip.motion_confidence for clip in chosen]),
            "caption": block["caption"][nearest],  # of what is seen
            "key": block["key"],
            "position": block["position"],
            "damaged": np.array(damaged, dtype=object),
        }

    def _clip(self, block: dict[str, np.ndarray], i: int) -> Clip:
        shard = _open(str(self.root / block["shard"][i]))
        video = _member(shard, int(block["offset"][i]), int(block["size"][i]))
        facts = _member(shard, int(block["json_offset"][i]), int(block["json_size"][i]))
        # Where the window lies belongs to the position, as all randomness of a clip does.
        start = np.random.default_rng((self.seed, int(block["position"][i]))).random()
        return read_clip(video, facts, self.window, start)


@lru_cache(maxsize=32)
def _open(path: str) -> Any:
    return open(path, "rb", buffering=0)  # kept open for the next clip


def _member(shard: Any, offset: int, size: int) -> bytes:
    shard.seek(offset)
    data = shard.read(size)
    if len(data) < size:
        raise ValueError(f"{shard.name} ends before byte {offset + size}")
    return data


class WorkerStream:
    """The clips of one worker, checked to be those of its positions.

    Args:
        say: is told of every sample that could not be read.
        shard: Ray Data's iterator for this worker; None decodes in this process.
    """

    def __init__(
        self,
        *,
        feed: Feed,
        run: RunFacts,
        data: DataFacts,
        rank: int,
        world_size: int,
        device: torch.device,
        say: Callable[[str], None],
        shard: Any = None,
    ) -> None:
        self.feed, self.run, self.data = feed, run, data
        self.rank, self.world_size, self.device = rank, world_size, device
        self.say = say
        self.shard = shard
        self.damaged = 0

    def train(self, first_step: int) -> Iterator[VideoBatch]:
        wanted = self._micro_positions(first_step)
        for arrays in self._from_ray() if self.shard else self._decode(wanted):
            expected = next(wanted) if self.shard else arrays["position"]
            if not np.array_equal(arrays["position"], expected):
                raise CommandError(
                    f"worker {self.rank} wants clip {expected[0]} of the plan and got "
                    f"{arrays['position'][0]}: the data stream lost its order"
                )
            self._name_damaged(arrays)
            yield to_batch(arrays, self.data.fps, self.device)

    def held_out(self) -> Iterator[VideoBatch]:
        """`validate_clips` clips of the val split, dealt to the workers in whole micro-batches."""
        return self._held_out(self.rank, self.world_size)

    def all_held_out(self) -> Iterator[VideoBatch]:
        """The held-out clips of all workers together."""
        return self._held_out(0, 1)

    def state(self, step: int) -> Mapping[str, Any]:
        """Where in the data a run is after a step, and which data that is."""
        return {
            "samples": step * self.run.global_batch,
            "seed": self.run.seed,
            "global_batch": self.run.global_batch,
            "index_hash": self.feed.index.hash,
        }

    def _held_out(self, rank: int, world_size: int) -> Iterator[VideoBatch]:
        rows = self.feed.index.rows_of("val")
        if not len(rows):
            rows = self.feed.rows
        micro = self.run.micro_batch
        rounds = max(1, self.run.validate_clips // (micro * world_size))
        reader = self.feed.reader()
        for i in range(rounds):
            first = (i * world_size + rank) * micro
            positions = np.arange(first, first + micro)
            block = read_rows(self.feed.index, rows[positions % len(rows)], positions=positions)
            yield to_batch(reader(block), self.data.fps, self.device)

    def _micro_positions(self, first_step: int) -> Iterator[np.ndarray]:
        step = first_step
        while True:
            positions = worker_positions(
                step,
                global_batch=self.run.global_batch,
                rank=self.rank,
                world_size=self.world_size,
            )
            yield from positions.reshape(-1, self.run.micro_batch)
            step += 1

    def _decode(self, wanted: Iterator[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        reader = self.feed.reader()
        for positions in wanted:
            yield reader(_columns(self.feed.table(positions)))

    def _from_ray(self) -> Iterator[dict[str, np.ndarray]]:
        while True:  # each pass is the next segment of the run
            yield from self.shard.iter_batches(
                batch_size=self.run.micro_batch,
                batch_format="numpy",
                prefetch_batches=self.data.prefetch,
            )

    def _name_damaged(self, arrays: dict[str, np.ndarray]) -> None:
        for key, cause in zip(arrays["key"], arrays["damaged"], strict=True):
            if cause:
                self.damaged += 1
                self.say(f"skipped {key}: {cause} ({self.damaged} by this worker so far)")


def ray_dataset(feed: Feed, run: RunFacts, data: DataFacts, world_size: int, first_step: int):
    """The rest of a run as a Ray dataset whose blocks suit `world_size` workers.

    A block holds the clips of one worker for a few consecutive steps: few large tasks, and rows
    that are whole micro-batches. Blocks take turns between the workers, and the order is kept, so
    that the split gives block i to worker i mod world_size.
    """
    import ray
    from ray.data import Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask

    share = run.global_batch // world_size
    steps_per_block = max(1, data.block_clips // share)

    class PlanSource(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit=None, data_context=None
        ) -> list[ReadTask]:
            # Whole blocks per segment, so that the next one begins where this one ends.
            length = max(1, STEPS_PER_SEGMENT // steps_per_block) * steps_per_block
            begin = first_step + getattr(data_context, "_execution_idx", 0) * length
            end = min(begin + length, run.steps)
            # Whole blocks for every worker: an equal split would trim a ragged end.
            return [
                self._task(range(step, step + steps_per_block), rank)
                for step in range(begin, end, steps_per_block)
                for rank in range(world_size)
            ]

        def _task(self, steps: range, rank: int) -> ReadTask:
            positions = [
                worker_positions(
                    step, global_batch=run.global_batch, rank=rank, world_size=world_size
                )
                for step in steps
            ]
            table = feed.table(np.concatenate(positions))
            facts = BlockMetadata(
                num_rows=len(table), size_bytes=table.nbytes, input_files=None, exec_stats=None
            )
            return ReadTask(lambda: [table], facts)

    reader: Any = feed.reader()
    # Ray must not cut blocks up, neither to have more of them nor to have small ones: it would deal
    # the pieces out to the wrong workers.
    dataset = ray.data.read_datasource(PlanSource(), override_num_blocks=1).map_batches(
        reader, batch_size=None, zero_copy_batch=True
    )
    dataset.context.target_max_block_size = None
    return dataset


def read_rows(
    index: DatasetIndex, rows: np.ndarray, *, positions: np.ndarray
) -> dict[str, np.ndarray]:
    """What a Reader needs to know of some rows of an index."""
    table = index.table.select(READ_COLUMNS).take(rows)
    return _columns(table.append_column("position", [positions]))


def _columns(table: Any) -> dict[str, np.ndarray]:
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
