import pickle
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from hstvg.data.plan import Bucket, Plan, assign_buckets, make_bucket
from hstvg.data.sample import Window

IDENTITY = "0123456789abcdef0123456789abcdef"


def window(num_frames=16, height=32, width=32, fps=8.0):
    return Window(num_frames=num_frames, height=height, width=width, fps=fps)


def plan(*counts, batches=(8,), num_shards=5, seed=0, identity=IDENTITY):
    """Buckets of `counts` samples, numbered through."""
    counts = counts or (37,)
    starts = np.cumsum((0, *counts))
    buckets = [
        Bucket(
            window=window(),
            rows=np.arange(start, start + count),
            batch=batch,
            micro=1,
            clip_bytes=1,
        )
        for start, count, batch in zip(starts, counts, batches, strict=False)
    ]
    shards = np.sort(np.arange(sum(counts)) % num_shards)
    return Plan(buckets, shards=shards, seed=seed, identity=identity)


def rows(order, steps):
    return np.concatenate([order.batch(step).rows for step in steps]).tolist()


def test_a_single_bucket_shows_every_sample_once_per_epoch():
    """37 samples in batches of 8: the leftovers of an epoch begin the next one's first batch."""
    seen = rows(plan(), range(37))  # 8 epochs
    for epoch in range(8):
        assert sorted(seen[37 * epoch : 37 * (epoch + 1)]) == list(range(37))


def test_epochs_of_37_samples_in_batches_of_8_have_4_or_5_steps():
    order = plan()
    assert [order.steps_before(epoch) for epoch in range(6)] == [0, 4, 9, 13, 18, 23]
    assert [order.epoch_of(step) for step in (0, 3, 4, 8, 9, 12, 13)] == [0, 0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("batches", [(8, 2), (4, 4), (64, 3)])
def test_every_bucket_keeps_its_own_epochs(batches):
    """Also where a global batch is larger than its bucket."""
    counts = (37, 11)
    order = plan(*counts, batches=batches)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for step in range(400):
        batch = order.batch(step)
        assert len(batch.rows) == batches[batch.bucket]
        seen[batch.bucket] += batch.rows.tolist()
    for b, (start, count) in enumerate(((0, 37), (37, 11))):
        whole = len(seen[b]) // count * count
        assert whole > count
        for first in range(0, whole, count):
            assert sorted(seen[b][first : first + count]) == list(range(start, start + count))


def test_buckets_are_mixed_within_an_epoch_and_not_one_after_the_other():
    order = plan(800, 400, batches=(8, 8))
    buckets = [order.batch(step).bucket for step in range(150)]
    assert order.steps_before(1) == 150
    for start in range(0, 150, 15):
        assert Counter(buckets[start : start + 15])[1] in range(3, 8)  # 5 of 15 on average


def test_positions_count_the_clips_of_the_run_without_gap():
    order = plan(37, 11, batches=(8, 2))
    positions = np.concatenate([order.batch(step).positions for step in range(60)])
    assert positions.tolist() == list(range(len(positions)))
    assert order.clips_before(60) == len(positions)


def test_seeds_data_sets_and_epochs_have_their_own_order():
    base = rows(plan(), range(5))
    others = [plan(seed=1), plan(identity="f" * 32)]
    assert all(rows(other, range(5)) != base for other in others)
    whole = rows(plan(), range(37))
    assert whole[:37] != whole[37:74]


def test_the_order_can_be_asked_for_anywhere():
    order = plan(37, 11, batches=(8, 2))
    whole = [order.batch(step).rows.tolist() for step in range(200)]
    for step in (150, 3, 4, 0, 150, 199):
        again = plan(37, 11, batches=(8, 2)) if step == 4 else order
        assert again.batch(step).rows.tolist() == whole[step]


def test_a_plan_can_be_sent_elsewhere():
    order = plan(37, 11, batches=(8, 2))
    order.batch(3)
    assert rows(pickle.loads(pickle.dumps(order)), range(20)) == rows(order, range(20))


def test_reads_stay_within_groups_of_shards():
    """130 shards are three groups of at most 64: a stretch of an epoch touches one or two."""
    order = plan(1300, batches=(10,), num_shards=130)
    shards = [set((order.batch(step).rows // 10).tolist()) for step in range(130)]
    for start in range(0, 60, 20):
        assert len(set.union(*shards[start : start + 20])) <= 64
    assert len(set.union(*shards)) == 130


def test_a_plan_needs_samples():
    with pytest.raises(ValueError, match="at least one sample"):
        plan(0)


def test_an_order_that_runs_in_the_world_depend_on_stays():
    assert plan().batch(0).rows.tolist() == [13, 24, 5, 1, 7, 25, 11, 26]


# ---- buckets ----------------------------------------------------------------------------------

WINDOWS = (
    window(16, 64, 64),
    window(16, 32, 32),
    window(8, 64, 64),
    window(16, 36, 64),
)


@pytest.mark.parametrize(
    ("sample", "best"),
    [
        ((16, 64, 64), 0),
        ((100, 480, 480), 0),
        ((16, 40, 40), 1),  # 64 rows would be made up
        ((8, 64, 64), 2),  # the longest it fills
        ((16, 720, 1280), 3),  # aspect first
        ((8, 720, 1280), 3),  # too short, but no other has the aspect
        ((2, 16, 16), 2),  # fills none and is smaller than all: the shortest, though large
        ((16, 1280, 720), 0),  # upright: the square ones are nearest
    ],
)
def test_a_sample_goes_where_it_fits(sample, best):
    num_frames, height, width = (np.array([value]) for value in sample)
    (chosen,) = assign_buckets(
        WINDOWS, num_frames=num_frames, fps=np.array([8.0]), width=width, height=height
    )
    assert chosen == best


def test_seconds_count_not_frames():
    """16 frames at 30 fps last half a second, which 8 frames a second fill with 4."""
    (chosen,) = assign_buckets(
        WINDOWS,
        num_frames=np.array([16]),
        fps=np.array([30.0]),
        width=np.array([64]),
        height=np.array([64]),
    )
    assert chosen == 2


def test_no_global_batch_has_more_tokens_than_the_base():
    base = window(16, 32, 32)
    sizes = [(16, 32, 32), (8, 32, 32), (16, 64, 32), (16, 24, 40), (32, 64, 64), (64, 64, 64)]
    facts = {"micro_batch": 8, "global_batch": 64, "clip_bytes": 1}
    buckets = [make_bucket(window(*size), np.arange(3), base=base, **facts) for size in sizes]
    assert [bucket.micro for bucket in buckets] == [8, 16, 4, 8, 1, 1]  # never none
    assert [bucket.batch for bucket in buckets] == [64, 128, 32, 64, 8, 8]
    for bucket in buckets[:-1]:
        assert bucket.batch * bucket.window.num_pixels <= 64 * base.num_pixels


# ---- workers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_workers_share_a_global_batch_without_gap_or_overlap(world_size):
    order = plan(37, 11, batches=(8, 4))
    passes = [
        list(islice(order.passes(rank, world_size, first_step=3), 8)) for rank in range(world_size)
    ]
    batch = order.batch(3)
    got = [item for part in passes for item in part if item.step == 3]
    assert np.concatenate([item.positions for item in got]).tolist() == batch.positions.tolist()
    assert np.concatenate([item.rows for item in got]).tolist() == batch.rows.tolist()
    assert {item.bucket for item in got} == {batch.bucket}
    steps = [[item.step for item in part] for part in passes]
    assert all(step == steps[0] for step in steps)
