"""The stream: from an index to micro-batches of clips, in the order of the plan.

With Ray, data tasks read byte ranges of the shards and decode them; without, the same reader
decodes in the worker's own process. Either way a worker gets exactly the positions it asked for,
and checks them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hstvg.data.batch import to_batch, to_latent_batch
from hstvg.data.partners import Partners
from hstvg.data.plan import Pass, Plan, assign_buckets, make_bucket
from hstvg.data.sample import Window
from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.index import DatasetIndex, read_index
from hstvg.runtime.latents import Lineage, read_lineage
from hstvg.runtime.order import OrderLog
from hstvg.runtime.quarantine import Quarantine
from hstvg.runtime.reader import (
    LatentOpener,
    Opener,
    Reader,
    VideoOpener,
    references,
    with_partners,
)
from hstvg.train.ports import Substitution
from hstvg.types import TrainingBatch

PASSES_PER_SEGMENT = 20_000
"""Steps times workers that one execution of the Ray dataset covers: what is planned ahead."""
TASK_CPUS = 0.5
"""CPUs that a data task asks for: between two tasks a CPU would idle while Ray finds the next."""
SPARES = 16
"""Clips that stand in for damaged ones."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What the stream draws from: an index, the order of its training rows, how they are read."""

    index: DatasetIndex
    plan: Plan
    base: Window
    """The window of held-out clips; in its tokens the global batch is counted."""
    opener: Opener

    @cached_property
    def source(self) -> "Source":
        """Of the training clips."""
        table, partners = self.index.table, None
        if self.has_partners:
            trained = np.zeros(len(table), dtype=bool)
            trained[self.index.rows_of("train")] = True
            captions = table.column("caption").to_pylist()
            others = [text if here else "" for text, here in zip(captions, trained, strict=True)]
            partners = Partners(others, self.plan.seed)
        return Source(table=table, partners=partners)

    @property
    def has_partners(self) -> bool:
        """Whether clips come with partners of their style."""
        return isinstance(self.opener, LatentOpener) and self.opener.partners

    def reader(self, split: str = "train") -> Reader:
        """Its spares belong to the seed and the data set, so that everybody has the same."""
        rows = self.index.rows_of(split)
        rng = np.random.default_rng((*self.plan.entropy, 4))
        chosen = rng.choice(len(rows), min(SPARES, len(rows)), replace=False)
        spares = self.index.take(np.sort(rows[chosen])).to_pylist()
        return Reader(root=self.index.root, opener=self.opener, spares=spares)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What references are made of."""

    table: pa.Table
    partners: Partners | None
    """Of its rows; None where nobody asked for them."""

    def references(self, rows: np.ndarray, positions: np.ndarray, windows: int) -> pa.Table:
        """To rows of the table and, where they have partners, to those."""
        asked = references(self.table.take(rows), positions, windows)
        if self.partners is None:
            return asked
        return with_partners(asked, self.table, self.partners.of(rows, positions))


def open_feed(run: RunFacts, data: DataFacts) -> Feed:
    """The training clips of a run.

    Raises:
        ConfigError: there is no data set at data.path, or a bucket is none.
        CommandError: it has no training clips.
    """
    index = read_index(data.path)
    rows = index.rows_of("train")
    if not len(rows):
        raise CommandError(f"{data.path} has no clips in its train split; prepare more clips")
    base, windows = window_of(data), bucket_windows(data)
    names = ("num_frames", "fps", "width", "height")
    chosen = assign_buckets(windows, **{name: index.fact(name)[rows] for name in names})
    # Buckets that nobody fills stay out; after the others comes the window of held-out clips.
    filled = [b for b in range(len(windows)) if (chosen == b).any()]
    shown = (*(windows[b] for b in filled), base)
    lineage = read_lineage(data.path)
    opener = _opener(run, data, shown, lineage)
    # Latents come in the order of their videos, so that a run on the ones is one on the others.
    identity = lineage.source_index if lineage else index.hash
    sizes = {"micro_batch": run.micro_batch, "global_batch": run.global_batch}
    buckets = [
        make_bucket(
            shown[place],
            rows[chosen == b],
            base=base,
            clip_bytes=opener.clip_bytes(place),
            **sizes,
        )
        for place, b in enumerate(filled)
    ]
    plan = Plan(buckets, shards=index.shard_numbers, seed=run.seed, identity=identity)
    return Feed(index=index, plan=plan, base=base, opener=opener)


def _opener(
    run: RunFacts, data: DataFacts, windows: Sequence[Window], lineage: Lineage | None
) -> Opener:
    if lineage is not None:
        return LatentOpener(
            layout=lineage.layout,
            seed=run.seed,
            partners=data.style,
            shown=lineage.window if data.layout else None,
        )
    return VideoOpener(
        windows=windows,
        seed=run.seed,
        motion=data.motion,
        layout=data.layout,
        decoder=data.decoder,
    )


def window_of(data: DataFacts) -> Window:
    return Window(num_frames=data.num_frames, fps=data.fps, height=data.height, width=data.width)


def bucket_windows(data: DataFacts) -> list[Window]:
    """The windows of data.buckets; without any, the base window alone.

    Raises:
        ConfigError: one is not FRAMESxHEIGHTxWIDTH.
    """
    if not data.buckets:
        return [window_of(data)]
    windows = []
    for text in data.buckets:
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
            raise ConfigError(f"data.buckets: {text} is not FRAMESxHEIGHTxWIDTH, like 16x32x48")
        frames, height, width = map(int, parts)
        windows.append(Window(num_frames=frames, fps=data.fps, height=height, width=width))
    return windows


class WorkerStream:
    """The clips of one worker, checked to be those of its positions.

    Args:
        quarantine: takes down damaged samples.
        order: where every sample trained is written down.
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
        quarantine: Quarantine,
        order: OrderLog,
        shard: Any = None,
    ) -> None:
        self.feed, self.run, self.data = feed, run, data
        self.rank, self.world_size, self.device = rank, world_size, device
        self.shard = shard
        self.damage = quarantine
        self.order = order
        self._substitutions: list[Substitution] = []
        self._named: set[str] = set()

    def train(self, first_step: int) -> Iterator[TrainingBatch]:
        for arrays in self.arrays(first_step):
            yield self._batch(arrays)

    def arrays(self, first_step: int) -> Iterator[dict[str, np.ndarray]]:
        """The micro-batches as they come from storage, uint8, in the order of the plan."""
        plan = self.feed.plan
        self.damage.begin(first_step)
        self.order.begin(first_step, self.rank, self.world_size)
        blocks = _Cutter(self._from_ray()) if self.shard else None
        reader = None if self.shard else self.feed.reader()
        for part in plan.passes(self.rank, self.world_size, first_step):
            if blocks is not None:
                arrays = blocks.take(len(part.positions))
            else:
                assert reader is not None
                asked = self.feed.source.references(part.rows, part.positions, part.bucket)
                arrays = reader(asked)
            if not np.array_equal(arrays["position"], part.positions):
                raise CommandError(
                    f"worker {self.rank} wants clip {part.positions[0]} of the plan and got "
                    f"{arrays['position'][0]}: the data stream lost its order"
                )
            self._note(part.step + 1, arrays)
            yield arrays

    def substitutions(self) -> list[Substitution]:
        """The damaged samples met since the last call."""
        found, self._substitutions = self._substitutions, []
        return found

    def quarantine(self, found: list[Substitution], step: int) -> None:
        self.damage.add(found, samples=self.feed.plan.clips_before(step))

    def sync(self) -> None:
        self.order.sync()

    def state(self, step: int) -> Mapping[str, Any]:
        return {
            "epoch": self.feed.plan.epoch_of(step),
            "samples": self.feed.plan.clips_before(step),
            "seed": self.run.seed,
            "index_hash": self.feed.index.hash,
            "global_batch": self.run.global_batch,
        }

    def held_out(self) -> Iterator[TrainingBatch]:
        """`validate_clips` clips of the val split, dealt to the workers in whole micro-batches."""
        reader, source = self._held_out_source
        micro = self.run.micro_batch
        for i in range(max(1, self.run.validate_clips // (micro * self.world_size))):
            first = (i * self.world_size + self.rank) * micro
            positions = np.arange(first, first + micro)
            rows, base = positions % len(source.table), len(self.feed.plan.buckets)
            arrays = reader(source.references(rows, positions, base))
            for key, reason in zip(arrays["key"], arrays["reason"], strict=True):
                if reason and key not in self._named:
                    self._named.add(key)
                    self.damage.say(f"held-out clip {key} is replaced by another: {reason}")
            yield self._batch(arrays)

    @cached_property
    def _held_out_source(self) -> tuple[Reader, Source]:
        """Kept: the index is read for it once, and not at every validation."""
        split = "val" if len(self.feed.index.rows_of("val")) else "train"
        rows = self.feed.index.rows_of(split)[: max(self.run.validate_clips, 1)]
        table, partners = self.feed.index.take(rows), None
        if self.feed.has_partners:
            partners = Partners(table.column("caption").to_pylist(), self.run.seed)
        return self.feed.reader(split), Source(table=table, partners=partners)

    def _batch(self, arrays: Mapping[str, np.ndarray]) -> TrainingBatch:
        if "latent" in arrays:
            return to_latent_batch(arrays, self.device)
        return to_batch(arrays, self.data.fps, self.device)

    def _from_ray(self) -> Iterator[dict[str, np.ndarray]]:
        while True:  # each pass is the next segment of the run
            yield from self.shard.iter_batches(
                batch_size=None,  # blocks as they are: joining or cutting them would copy
                batch_format="numpy",
                prefetch_batches=self.data.prefetch,
            )

    def _note(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        names = ("position", "key", "reason", "substitute")
        for position, *texts in zip(*(arrays[name].tolist() for name in names), strict=True):
            if texts[1]:
                facts = dict(zip(names[1:], map(str, texts), strict=True))
                self._substitutions.append(Substitution(step=step, position=position, **facts))
        self.order.write(step, arrays)


class _Cutter:
    """Cuts blocks into the passes that they are made of, without copying."""

    def __init__(self, blocks: Iterator[dict[str, np.ndarray]]) -> None:
        self.blocks = blocks
        self.block: dict[str, np.ndarray] = {"position": np.empty(0)}
        self.used = 0

    def take(self, rows: int) -> dict[str, np.ndarray]:
        if self.used == len(self.block["position"]):
            self.block, self.used = next(self.blocks), 0
        part = slice(self.used, self.used + rows)
        self.used += rows
        return {name: values[part] for name, values in self.block.items()}


# ---- the Ray dataset --------------------------------------------------------------------------


def ray_dataset(feed: Feed, run: RunFacts, data: DataFacts, world_size: int, first_step: int):
    """The rest of a run as a Ray dataset whose blocks suit `world_size` workers.

    A block holds consecutive passes of one worker and one bucket: few large tasks. Blocks take
    turns between the workers, and the order is kept, so that the split gives block i to worker
    i mod world_size. Tasks get row numbers; the index lies once in the object store.
    """
    import ray
    from ray.data import Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask

    from hstvg.runtime.executor_rest import ExecutorRest

    held = ray.put(feed.source)
    # Not the feed: what the tasks refer to travels with them.
    plan, block_mb, last_step = feed.plan, data.block_mb, run.steps

    class PlanSource(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit=None, data_context=None
        ) -> list[ReadTask]:
            segment = getattr(data_context, "_execution_idx", 0)
            length = max(1, PASSES_PER_SEGMENT // world_size)
            begin = first_step + segment * length
            end = min(begin + length, last_step)
            blocks = rounds(plan, world_size, begin=begin, end=end, block_mb=block_mb)
            return [self._task(block) for round in blocks for block in round]

        def _task(self, parts: list[Pass]) -> ReadTask:
            rows = np.concatenate([part.rows for part in parts])
            positions = np.concatenate([part.positions for part in parts])
            bucket = parts[0].bucket
            facts = BlockMetadata(
                num_rows=len(rows), size_bytes=300 * len(rows), input_files=None, exec_stats=None
            )
            return ReadTask(lambda: [ray.get(held).references(rows, positions, bucket)], facts)

    reader: Any = feed.reader()
    # Ray must not cut blocks up, neither to have more of them nor to have small ones: it would deal
    # the pieces out to the wrong workers.
    planned = ray.data.read_datasource(PlanSource(), override_num_blocks=1, num_cpus=TASK_CPUS)
    dataset = planned.map_batches(
        reader,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=TASK_CPUS,  # as above, or Ray would make two stages of it
    )
    dataset.context.target_max_block_size = None
    dataset.context.custom_execution_callback_classes = [ExecutorRest]
    return dataset


def rounds(
    plan: Plan, world_size: int, *, begin: int, end: int, block_mb: float
) -> Iterator[list[list[Pass]]]:
    """The passes from step `begin` to before `end` in rounds: one block per worker.

    A block is as many passes of one bucket as fit into `block_mb`, at least one.
    """
    blocks: list[list[Pass]] = [[] for _ in range(world_size)]
    for step in range(begin, end):
        for passes in zip(*plan.shares(step, world_size), strict=True):
            if blocks[0] and not _fits(plan, blocks[0], passes[0], block_mb):
                yield blocks
                blocks = [[] for _ in blocks]
            for block, one in zip(blocks, passes, strict=True):
                block.append(one)
    if blocks[0]:
        yield blocks


def _fits(plan: Plan, block: list[Pass], one: Pass, block_mb: float) -> bool:
    bucket = plan.buckets[one.bucket]
    clips = (len(block) + 1) * bucket.micro
    return block[0].bucket == one.bucket and clips * bucket.clip_bytes <= block_mb * 1e6
