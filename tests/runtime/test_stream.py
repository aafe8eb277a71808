"""The stream: the same clips in the same order, whoever asks and however many ask."""

import shutil
import sys
import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hstvg.data.sample import Window, read_clip
from hstvg.runtime import stream as stream_module
from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.index import read_index, write_index
from hstvg.runtime.order import OrderLog
from hstvg.runtime.quarantine import Quarantine
from hstvg.runtime.reader import references
from hstvg.runtime.stream import WorkerStream, open_feed, ray_dataset
from hstvg.scene.grammar import MOTIONS, read_caption
from hstvg.train.ports import Stream
from hstvg.types import VideoBatch

GLOBAL_BATCH, MICRO_BATCH = 8, 2


def run_facts(**changes) -> RunFacts:
    facts = {"name": "run", "steps": 20, "global_batch": GLOBAL_BATCH, "micro_batch": MICRO_BATCH}
    return RunFacts(**{**facts, "validate_clips": 8, **changes})


def data_facts(path: Path, **changes) -> DataFacts:
    window = {"num_frames": 8, "fps": 8.0, "height": 16, "width": 16, "motion": True}
    return DataFacts(**{"path": str(path), **window, **changes})


def worker_stream(
    path: Path, rank: int = 0, world_size: int = 1, *, shard=None, seed: int = 0, **changes
) -> WorkerStream:
    run, data = run_facts(seed=seed), data_facts(path, **changes)
    quarantine = Quarantine(path, max_fraction=1, epoch_clips=80, rank=rank, say=print)
    return WorkerStream(
        feed=open_feed(run, data),
        run=run,
        data=data,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        quarantine=quarantine,
        order=OrderLog(path, keep=False),
        shard=shard,
    )


def keys_of(feed, steps) -> list[str]:
    """Keys of the samples of some steps, in the order of the plan."""
    rows = np.concatenate([feed.plan.batch(step).rows for step in steps])
    return feed.index.table.column("key").take(rows).to_pylist()


def keys_in(path: Path, split: str) -> set[str]:
    return {row["key"] for row in read_index(path).table.to_pylist() if row["split"] == split}


def take(stream: WorkerStream, num_steps: int, *, first_step: int = 0) -> list[VideoBatch]:
    """The micro-batches of a worker's next steps."""
    per_step = GLOBAL_BATCH // (stream.world_size * MICRO_BATCH)
    return list(islice(stream.train(first_step), num_steps * per_step))


def global_order(path: Path, world_size: int, num_steps: int, first_step: int = 0) -> list[dict]:
    """Every clip of some steps in the order of the plan, put together from all workers."""
    share = GLOBAL_BATCH // world_size
    clips: list[list[dict]] = []
    for rank in range(world_size):
        batches = take(worker_stream(path, rank, world_size), num_steps, first_step=first_step)
        clips.append([clip for batch in batches for clip in rows(batch)])
    return [
        clip
        for step in range(num_steps)
        for mine in clips
        for clip in mine[step * share : (step + 1) * share]
    ]


def rows(batch: VideoBatch) -> list[dict]:
    return [
        {
            "position": int(batch.positions[i]),
            "key": batch.keys[i],
            "caption": batch.captions[i],
            "pixels": batch.pixels[i],
            "motion": batch.motion[i],
            "confidence": batch.motion_confidence[i],
        }
        for i in range(len(batch))
    ]


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name, value in one.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[name]), (one["key"], name)
            else:
                assert value == other[name]


@pytest.fixture
def damaged_copy(shapes_dataset, tmp_path) -> Path:
    """A copy of the data set, to be damaged."""
    return Path(shutil.copytree(shapes_dataset, tmp_path / "damaged"))


def overwrite(path: Path, key: str, junk: bytes = b"\x00") -> None:
    """Replace the bytes of one clip's MP4 inside its shard."""
    (row,) = [row for row in read_index(path).table.to_pylist() if row["key"] == key]
    with (path / row["shard"]).open("r+b") as shard:
        shard.seek(row["offset"])
        shard.write((junk * row["size"])[: row["size"]])


# ---- order ------------------------------------------------------------------------------------


def test_a_stream_is_a_stream(shapes_dataset):
    assert isinstance(worker_stream(shapes_dataset), Stream)


def test_a_batch_is_what_the_vocabulary_says(shapes_dataset):
    (batch, *_) = take(worker_stream(shapes_dataset), 1)
    assert batch.pixels.shape == (MICRO_BATCH, 3, 8, 16, 16)
    assert batch.pixels.dtype == torch.float32
    assert -1 <= batch.pixels.min() < batch.pixels.max() <= 1
    assert batch.motion.shape == (MICRO_BATCH, 2, 8, 4, 4)
    assert batch.fps.tolist() == [8.0] * MICRO_BATCH


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_workers_makes_the_same_global_batches(shapes_dataset, world_size):
    alone = global_order(shapes_dataset, 1, num_steps=3)
    assert [clip["position"] for clip in alone] == list(range(3 * GLOBAL_BATCH))
    assert_same(global_order(shapes_dataset, world_size, num_steps=3), alone)


def test_a_resumed_stream_goes_on_where_it_was(shapes_dataset):
    whole = global_order(shapes_dataset, 2, num_steps=5)
    assert_same(
        global_order(shapes_dataset, 2, num_steps=2, first_step=3), whole[3 * GLOBAL_BATCH :]
    )


def test_an_epoch_shows_every_training_clip_once(shapes_dataset):
    train = keys_in(shapes_dataset, "train")
    keys = keys_of(open_feed(run_facts(), data_facts(shapes_dataset)), range(40))
    for epoch in range(3):
        assert sorted(keys[epoch * len(train) : (epoch + 1) * len(train)]) == sorted(train)


def test_seeds_have_orders_of_their_own(shapes_dataset):
    first, second = (
        keys_of(open_feed(run_facts(seed=seed), data_facts(shapes_dataset)), range(4))
        for seed in (0, 1)
    )
    assert first != second


def test_a_window_belongs_to_the_position(shapes_dataset):
    """The 8 frames shown of a clip of 16 differ from epoch to epoch, but not from run to run."""
    feed = open_feed(run_facts(), data_facts(shapes_dataset))
    rows = np.concatenate([feed.plan.batch(step).rows for step in range(30)])
    moving = 0
    for place in range(6):
        again = rows.tolist().index(rows[place], place + 1)
        windows = [
            feed.reader()(references(feed.index.take(rows[[at]]), np.array([at]), 0))
            for at in (place, again, place)
        ]
        np.testing.assert_array_equal(windows[0]["pixels"], windows[2]["pixels"])
        np.testing.assert_array_equal(windows[0]["motion"], windows[2]["motion"])
        moving += not np.array_equal(windows[0]["pixels"], windows[1]["pixels"])
    assert moving >= 4  # a clip that stands still looks the same from every start


def test_a_data_set_elsewhere_is_the_same_data_set(shapes_dataset, damaged_copy):
    assert_same(
        global_order(damaged_copy, 1, num_steps=1), global_order(shapes_dataset, 1, num_steps=1)
    )


# ---- motion -----------------------------------------------------------------------------------


def test_exact_motion_arrives_with_the_right_sign(shapes_dataset):
    """x to the right and y down, in frame widths per second, at the speed the caption names."""
    stream = worker_stream(shapes_dataset)
    directions = Counter()
    for batch in take(stream, 10):
        for clip in rows(batch):
            (thing,) = read_caption(clip["caption"]).objects
            moved = clip["motion"][:, :-1].flatten(1)
            strongest = moved[:, moved.square().sum(0).argmax()]
            want = torch.tensor(MOTIONS[thing.motion])
            directions[thing.motion] += 1
            if thing.motion == "still":
                assert not moved.any()
                continue
            # A cell of 4 pixels that the object fills moves as the object does.
            cosine = torch.dot(strongest, want) / (strongest.norm() * want.norm())
            assert cosine > 0.95, clip["caption"]
    assert len(directions) >= 6


def test_exact_motion_is_trusted_but_at_the_last_frame(shapes_dataset):
    (batch, *_) = take(worker_stream(shapes_dataset), 1)
    assert (batch.motion_confidence[:, :, :-1] == 1).all()
    assert not batch.motion_confidence[:, :, -1].any()


# ---- held-out clips ---------------------------------------------------------------------------


def test_held_out_clips_are_of_the_val_split_and_always_the_same(shapes_dataset):
    val = keys_in(shapes_dataset, "val")
    assert val
    stream = worker_stream(shapes_dataset)
    first, second = ([clip for b in stream.held_out() for clip in rows(b)] for _ in range(2))
    assert {clip["key"] for clip in first} <= val
    assert len(first) == 8
    assert_same(first, second)


def test_workers_share_the_held_out_clips_out_evenly(shapes_dataset):
    alone = [clip for batch in worker_stream(shapes_dataset).held_out() for clip in rows(batch)]
    shares = [list(worker_stream(shapes_dataset, rank, 2).held_out()) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 2
    together = [clip for share in shares for batch in share for clip in rows(batch)]
    assert_same(sorted(together, key=lambda clip: clip["position"]), alone)


def test_without_held_out_clips_the_training_clips_stand_in(shapes_dataset, tmp_path):
    only = only_split(shapes_dataset, tmp_path, "train")
    assert sum(len(batch) for batch in worker_stream(only).held_out()) == 8


def only_split(shapes_dataset: Path, folder: Path, split: str) -> Path:
    path = Path(shutil.copytree(shapes_dataset, folder / split))
    table = read_index(path).table.to_pylist()
    write_index(path, [row for row in table if row["split"] == split])
    return path


def test_nothing_to_train_on_is_said(shapes_dataset, tmp_path):
    only = only_split(shapes_dataset, tmp_path, "unseen")
    with pytest.raises(CommandError, match="no clips in its train split"):
        open_feed(run_facts(), data_facts(only))
    with pytest.raises(ConfigError, match="does not exist"):
        open_feed(run_facts(), data_facts(tmp_path / "nowhere"))


# ---- damage -----------------------------------------------------------------------------------


def test_a_damaged_clip_is_replaced_in_place_and_named(shapes_dataset, damaged_copy):
    clean = global_order(shapes_dataset, 1, num_steps=2)
    bad = clean[5]
    overwrite(damaged_copy, bad["key"])
    stream = worker_stream(damaged_copy)
    got = [clip for batch in take(stream, 2) for clip in rows(batch)]
    assert_same(got[:5] + got[6:], clean[:5] + clean[6:])
    (found,) = stream.substitutions()
    assert (found.step, found.position, found.key) == (1, 5, bad["key"])
    assert "checksum" in found.reason
    assert stream.substitutions() == []  # each is told once
    # What is shown is another clip of the training split, with its own caption: a generator must
    # not learn the damaged clip's words on another picture.
    table = {row["key"]: row for row in read_index(shapes_dataset).table.to_pylist()}
    assert table[found.substitute]["split"] == "train"
    assert found.substitute != bad["key"]
    assert got[5]["caption"] == table[found.substitute]["caption"]
    assert got[5]["position"] == 5


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_substitute_does_not_depend_on_the_number_of_workers(
    shapes_dataset, damaged_copy, world_size
):
    for clip in global_order(shapes_dataset, 1, num_steps=2)[3:9]:
        overwrite(damaged_copy, clip["key"])
    assert_same(
        global_order(damaged_copy, world_size, num_steps=2),
        global_order(damaged_copy, 1, num_steps=2),
    )


def test_a_clip_that_is_cut_off_with_its_shard_is_replaced(shapes_dataset, damaged_copy):
    clean = global_order(shapes_dataset, 1, num_steps=9)
    table = {row["key"]: row for row in read_index(damaged_copy).table.to_pylist()}
    # The last training clip of the first shard that this test reads, and all behind it, are gone.
    first = [c for c in clean if table[c["key"]]["shard"].endswith("000000.tar")]
    last = max(first, key=lambda clip: table[clip["key"]]["offset"])
    row = table[last["key"]]
    with (damaged_copy / row["shard"]).open("r+b") as shard:
        shard.truncate(row["offset"] + row["size"] // 2)
    stream = worker_stream(damaged_copy)
    got = [clip for batch in take(stream, 9) for clip in rows(batch)]
    assert [clip["position"] for clip in got] == [clip["position"] for clip in clean]
    found = stream.substitutions()
    assert [item.key for item in found] == [c["key"] for c in clean if c["key"] == last["key"]]
    assert "ends before byte" in found[0].reason


def test_a_shard_that_is_gone_is_replaced_clip_by_clip(shapes_dataset, damaged_copy):
    (damaged_copy / "shards" / "000001.tar").unlink()
    stream = worker_stream(damaged_copy)
    got = [clip for batch in take(stream, 3) for clip in rows(batch)]
    table = {row["key"]: row for row in read_index(damaged_copy).table.to_pylist()}
    lost = [clip for clip in got if table[clip["key"]]["shard"].endswith("000001.tar")]
    assert len(lost) == len(stream.substitutions()) > 3


def test_a_data_set_of_which_nothing_can_be_read_says_so(damaged_copy):
    shutil.rmtree(damaged_copy / "shards")
    with pytest.raises(CommandError, match="nor can any of 16 clips") as caught:
        take(worker_stream(damaged_copy), 1)
    assert f"verify={damaged_copy}" in str(caught.value)


@pytest.mark.parametrize("claimed", [0, -5, 1 << 40])
def test_a_size_that_no_clip_has_is_not_read(shapes_dataset, tmp_path, claimed):
    path = Path(shutil.copytree(shapes_dataset, tmp_path / "copy"))
    table = read_index(path).table.to_pylist()
    key = global_order(shapes_dataset, 1, num_steps=1)[0]["key"]
    write_index(path, [{**r, "size": claimed} if r["key"] == key else r for r in table])
    stream = worker_stream(path)
    take(stream, 11)
    assert key in {item.key for item in stream.substitutions()}


def test_motion_is_estimated_where_the_truth_is_not_known(shapes_dataset):
    """A clip of somebody's own footage: the same member without its scene."""
    index = read_index(shapes_dataset)
    row = next(
        row
        for row in index.table.to_pylist()
        if "moves right" in row["caption"] and "quickly" in row["caption"]
    )
    whole = (shapes_dataset / row["shard"]).read_bytes()
    video = whole[row["offset"] : row["offset"] + row["size"]]
    window = Window(num_frames=8, fps=8.0, height=16, width=16)
    how = {"duration_s": 2.0, "window": window, "start": 0.0, "decoder": "pyav", "scene": None}
    clip = read_clip(video, motion=True, **how)
    weighted = (clip["motion"].astype(float) * clip["motion_confidence"]).sum((1, 2, 3))
    assert weighted[0] > abs(weighted[1])
    assert not clip["motion_confidence"][:, -1].any()
    assert read_clip(video, motion=False, **how).keys() == {"pixels"}


# ---- buckets ----------------------------------------------------------------------------------

BUCKETS = ["8x16x16", "4x12x24"]


@pytest.fixture(scope="module")
def mixed_dataset(shapes_dataset, tmp_path_factory) -> Path:
    """The data set with every third clip said to be wide."""
    path = Path(shutil.copytree(shapes_dataset, tmp_path_factory.mktemp("mixed") / "data"))
    table = read_index(path).table.to_pylist()
    write_index(path, [{**row, "width": 64} if i % 3 == 0 else row for i, row in enumerate(table)])
    return path


def test_every_clip_is_shown_through_the_window_of_its_bucket(mixed_dataset):
    """4x12x24 has 1152 pixels and 8x16x16 has 2048: 3 clips of the one weigh as 2 of the other."""
    wide = {r["key"] for r in read_index(mixed_dataset).table.to_pylist() if r["width"] == 64}
    seen = Counter()
    for batch in islice(worker_stream(mixed_dataset, buckets=BUCKETS).train(0), 40):
        shape = tuple(batch.pixels.shape)
        seen[shape] += 1
        assert shape in {(2, 3, 8, 16, 16), (3, 3, 4, 12, 24)}
        assert {key in wide for key in batch.keys} == {shape[2] == 4}
    assert len(seen) == 2


@pytest.mark.parametrize("text", ["8x16", "axbxc", "8x16x0", "8x16x16x3"])
def test_a_bucket_that_is_none_is_refused(shapes_dataset, text):
    with pytest.raises(ConfigError, match=f"{text} is not FRAMESxHEIGHTxWIDTH"):
        open_feed(run_facts(), data_facts(shapes_dataset, buckets=[text]))


# ---- Ray Data ---------------------------------------------------------------------------------


CLIP_BYTES = 3 * 8 * 16 * 16


def split_in_two(
    path: Path,
    num_steps: int,
    *,
    first_step: int = 0,
    segment: int = 10_000,
    block_clips: int = 8,
    target_bytes: int = 128 * 2**20,
    buckets: tuple[str, ...] = (),
) -> list[list[dict]]:
    """What two consumers of one split get, each in its own thread.

    target_bytes is the size above which Ray likes to cut blocks up; its own is 128 MiB.
    """
    from ray.data import DataContext

    run, data = (
        run_facts(steps=first_step + num_steps),
        data_facts(path, block_mb=block_clips * CLIP_BYTES / 1e6, buckets=list(buckets)),
    )
    got: list[list[dict]] = [[], []]
    failed: list[BaseException] = []

    def consume(rank: int, shard) -> None:
        try:
            stream = worker_stream(path, rank, 2, shard=shard, buckets=list(buckets))
            batches = take(stream, num_steps, first_step=first_step)
            got[rank] = [clip for batch in batches for clip in rows(batch)]
        except BaseException as error:
            failed.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "PASSES_PER_SEGMENT", 2 * segment)
        patch.setattr(DataContext.get_current(), "target_max_block_size", target_bytes)
        dataset = ray_dataset(open_feed(run, data), run, data, 2, first_step)
        dataset.context.execution_options.preserve_order = True
        threads = [
            threading.Thread(target=consume, args=(rank, shard), daemon=True)
            for rank, shard in enumerate(dataset.streaming_split(2, equal=True))
        ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    if failed:
        raise failed[0]
    return got


CASES = {
    "one pass per block": {"block_clips": 1},
    "many blocks": {},
    "fewer blocks than CPUs": {"block_clips": 128},
    "blocks larger than Ray likes": {"target_bytes": 20_000},
    "resumed": {"first_step": 5},
    "over two borders of a segment": {"segment": 4, "first_step": 3},
    "a segment that is no whole number of blocks": {"segment": 4, "block_clips": 12},
    "clips of two sizes": {"buckets": tuple(BUCKETS)},
}


@pytest.mark.ray
@pytest.mark.parametrize("case", CASES)
def test_ray_gives_every_worker_exactly_its_positions(ray_cluster, mixed_dataset, case):
    import ray
    import ray.cloudpickle

    # In a process of Ray's, where hstvg runs without the type checks of these tests: they wrap its
    # functions in what cannot be pickled. This module is not importable there, so it travels whole.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    task = ray.remote(num_cpus=0)(split_in_two)
    got = ray.get(task.remote(mixed_dataset, 10, **CASES[case]))
    for rank in (0, 1):
        stream = worker_stream(mixed_dataset, rank, 2, buckets=list(CASES[case].get("buckets", ())))
        want = take(stream, 10, first_step=CASES[case].get("first_step", 0))
        assert_same(got[rank], [clip for batch in want for clip in rows(batch)])
