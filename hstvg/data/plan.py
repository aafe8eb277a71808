"""The order of training: a pure function of the data set, the seed and the global batch.

Every sample belongs to one bucket: clips of one size that are batched together. A bucket is an
endless sequence of epochs, each its samples in a new order, cut into global batches; what is left
over at the end of an epoch begins the first batch of the next. An epoch of the run is the batches
that its epochs complete, with the buckets evenly mixed. All of it is arithmetic on counts and
seeded permutations, so any step can be looked up, and nothing here knows how many workers there
are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count

import numpy as np
from jaxtyping import Float, Int

from hstvg.data.sample import Window

SHARDS_PER_GROUP = 64
"""Samples are shuffled within groups of so many shards, in which reads then stay for a while."""
CHUNK = 1 << 20
"""Samples assigned to buckets at a time; bounds memory."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Samples that are shown through the same window."""

    window: Window
    rows: Int[np.ndarray, "N"]
    """Of the index."""
    batch: int
    """Clips of a global batch."""
    micro: int
    """Clips of one forward pass of one worker."""
    clip_bytes: int
    """Of one clip on its way to a worker."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One global batch."""

    bucket: int
    first: int
    """Position of its first clip. Positions count the clips of a run from 0."""
    rows: Int[np.ndarray, "B"]

    @property
    def positions(self) -> Int[np.ndarray, "B"]:
        return self.first + np.arange(len(self.rows))


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one worker trains in one forward pass."""

    step: int
    bucket: int
    positions: Int[np.ndarray, "b"]
    rows: Int[np.ndarray, "b"]


class Plan:
    """Which samples stand at which step.

    Args:
        buckets: none empty.
        shards: shard number of every row of the index.
        seed: of the run.
        identity: hash of the index, so that another data set is another order.
    """

    def __init__(
        self, buckets: Sequence[Bucket], *, shards: Int[np.ndarray, "M"], seed: int, identity: str
    ) -> None:
        if not buckets or not all(len(bucket.rows) for bucket in buckets):
            raise ValueError("a plan needs at least one sample in every bucket")
        self.buckets = tuple(buckets)
        self.shards = shards
        self.num_shards = int(shards.max()) + 1
        self.seed, self.identity = seed, identity
        self.entropy = (seed, int(identity[:16], 16))
        # Two epochs of every bucket: a batch may hold the end of one and the start of the next.
        self._order = lru_cache(maxsize=2 * len(buckets) + 1)(self._draw_order)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def __reduce__(self):  # what is cached stays behind
        arguments = {"shards": self.shards, "seed": self.seed, "identity": self.identity}
        return partial(Plan, self.buckets, **arguments), ()

    def batch(self, step: int) -> Batch:
        """The global batch of a step, counted from 0."""
        epoch = self.epoch_of(step)
        place = step - self.steps_before(epoch)
        buckets, numbers, firsts = self._epoch(epoch)
        b = int(buckets[place])
        bucket = self.buckets[b]
        places = int(numbers[place]) * bucket.batch + np.arange(bucket.batch)
        epochs, within = np.divmod(places, len(bucket.rows))
        rows = np.empty(bucket.batch, dtype=np.int64)
        for part in np.unique(epochs):
            here = epochs == part
            rows[here] = bucket.rows[self._order(b, int(part))[within[here]]]
        return Batch(bucket=b, first=int(firsts[place]), rows=rows)

    def passes(self, rank: int, world_size: int, first_step: int) -> Iterator[Pass]:
        """All that one of the workers trains from a step on, without end."""
        for step in count(first_step):
            yield from self.shares(step, world_size)[rank]

    def shares(self, step: int, world_size: int) -> list[list[Pass]]:
        """What every worker trains at a step."""
        batch = self.batch(step)
        size = self.buckets[batch.bucket].micro
        parts = [slice(start, start + size) for start in range(0, len(batch.rows), size)]
        passes = [
            Pass(step=step, bucket=batch.bucket, positions=batch.positions[p], rows=batch.rows[p])
            for p in parts
        ]
        share = len(passes) // world_size
        return [passes[rank * share : (rank + 1) * share] for rank in range(world_size)]

    def epoch_of(self, step: int) -> int:
        """The epoch in which a step lies."""
        after = 1
        while self.steps_before(after) <= step:
            after *= 2
        before = after // 2
        while after - before > 1:  # the last epoch that begins at or before the step
            middle = (before + after) // 2
            if self.steps_before(middle) <= step:
                before = middle
            else:
                after = middle
        return before

    def steps_before(self, epoch: int) -> int:
        """Steps completed when an epoch begins."""
        return sum(self._batches_before(b, epoch) for b in range(len(self.buckets)))

    def clips_before(self, step: int) -> int:
        """Clips trained when a step begins: its first position."""
        epoch = self.epoch_of(step)
        return int(self._epoch(epoch)[2][step - self.steps_before(epoch)])

    def _batches_before(self, b: int, epoch: int) -> int:
        bucket = self.buckets[b]
        return epoch * len(bucket.rows) // bucket.batch

    def _draw_epoch(
        self, epoch: int
    ) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "S"], Int[np.ndarray, "S"]]:
        """Bucket, number within the bucket, and first position of every step of an epoch."""
        rng = np.random.default_rng((*self.entropy, epoch, 1))
        buckets, numbers, times = [], [], []
        for b in range(len(self.buckets)):
            begin, end = (self._batches_before(b, e) for e in (epoch, epoch + 1))
            number = end - begin
            buckets.append(np.full(number, b))
            numbers.append(np.arange(begin, end))
            # One batch of the bucket in each of `number` equal slices of the epoch: a steady mix
            # that keeps the bucket's own order, and with it the locality of its reads.
            times.append((np.arange(number) + rng.random(number)) / max(number, 1))
        order = np.argsort(np.concatenate(times), kind="stable")
        bucket = np.concatenate(buckets)[order]
        sizes = np.array([item.batch for item in self.buckets])[bucket]
        start = sum(
            item.batch * self._batches_before(b, epoch) for b, item in enumerate(self.buckets)
        )
        return bucket, np.concatenate(numbers)[order], start + np.cumsum(sizes) - sizes

    def _draw_order(self, b: int, epoch: int) -> Int[np.ndarray, "N"]:
        """The samples of a bucket in the order of one of its epochs."""
        ranks = np.random.default_rng((*self.entropy, epoch, 2)).permutation(self.num_shards)
        rng = np.random.default_rng((*self.entropy, epoch, 3, b))
        keys = rng.random(len(self.buckets[b].rows))
        if self.num_shards > SHARDS_PER_GROUP:
            keys += (ranks // SHARDS_PER_GROUP)[self.shards[self.buckets[b].rows]]
        # Stable: machines sort equal keys in different orders.
        return np.argsort(keys, kind="stable").astype(np.int32)


def assign_buckets(
    windows: Sequence[Window],
    *,
    num_frames: Int[np.ndarray, "N"],
    fps: Float[np.ndarray, "N"],
    width: Int[np.ndarray, "N"],
    height: Int[np.ndarray, "N"],
) -> Int[np.ndarray, "N"]:
    """The window that suits each sample best.

    The nearest aspect counts first (steps of a tenth in its logarithm), then the longest window
    that the sample fills, then the largest one for which it need not be enlarged.
    """
    chosen = np.zeros(len(num_frames), dtype=np.int8)
    if len(windows) == 1:
        return chosen
    frames, heights, widths = (
        np.array([getattr(window, name) for window in windows])
        for name in ("num_frames", "height", "width")
    )
    rates = np.array([window.fps for window in windows])
    for start in range(0, len(chosen), CHUNK):
        part = slice(start, start + CHUNK)
        tall, wide = height[part, None], width[part, None]
        available = num_frames[part, None] / fps[part, None]
        fills = frames / rates <= available + 1e-6
        enlarged = (heights > tall) | (widths > wide)
        away = np.abs(np.log(wide / tall) - np.log(widths / heights))
        chosen[part] = _lowest(
            np.round(away * 10),
            np.where(fills, -frames, frames + frames.max()),
            np.where(enlarged, heights * widths, -heights * widths),
        )
    return chosen


def _lowest(*criteria: np.ndarray) -> Int[np.ndarray, "N"]:
    """The column that is lowest by the first criterion; ties go to the next, then to the left."""
    left = np.ones(criteria[0].shape, dtype=bool)
    for values in criteria:
        candidates = np.where(left, values, np.inf)
        left &= candidates == candidates.min(axis=1, keepdims=True)
    return left.argmax(axis=1)


def make_bucket(
    window: Window,
    rows: Int[np.ndarray, "N"],
    *,
    base: Window,
    micro_batch: int,
    global_batch: int,
    clip_bytes: int,
) -> Bucket:
    """A bucket whose global batch has no more tokens than one of the base window.

    A single clip per pass is always let through, however large. Every global batch is cut into
    global_batch / micro_batch passes, so the same numbers of workers divide those of all buckets.
    """
    # Tokens are in proportion to pixels.
    micro = max(1, micro_batch * base.num_pixels // window.num_pixels)
    batch = micro * (global_batch // micro_batch)
    return Bucket(window=window, rows=rows, batch=batch, micro=micro, clip_bytes=clip_bytes)
