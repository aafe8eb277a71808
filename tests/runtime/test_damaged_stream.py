"""Training on shards damaged in thirty ways after they were indexed: all losses are counted."""

import hashlib
from pathlib import Path

import torch
from damage import NUM_SAMPLES, SHARDS

from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.index import read_index
from hstvg.runtime.order import OrderLog
from hstvg.runtime.quarantine import Quarantine
from hstvg.runtime.stream import WorkerStream, open_feed


def is_whole(folder: Path, row: dict) -> bool:
    """Whether the bytes at a sample's places are those that were written."""
    path = folder / row["shard"]
    content = path.read_bytes() if path.is_file() else b""
    places = (("offset", "size", "checksum"), ("json_offset", "json_size", "json_checksum"))
    return all(
        "sha256:" + hashlib.sha256(content[row[at] :][: row[size]]).hexdigest() == row[digest]
        for at, size, digest in places
    )


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_an_epoch_of_damaged_shards_loses_exactly_what_is_damaged(damaged_dataset, tmp_path):
    rows = read_index(damaged_dataset).table.to_pylist()
    assert len(rows) == NUM_SAMPLES * len(SHARDS) >= 4 * 20
    lost = sorted(row["key"] for row in rows if not is_whole(damaged_dataset, row))
    assert 20 < len(lost) < len(rows) - 20
    before = files_of(damaged_dataset)

    run = RunFacts(name="run", steps=len(rows) // 4, global_batch=4, micro_batch=4)
    window = {"num_frames": 4, "fps": 8.0, "height": 16, "width": 16}
    data = DataFacts(path=str(damaged_dataset), motion=True, **window)
    stream = WorkerStream(
        feed=open_feed(run, data),
        run=run,
        data=data,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=Quarantine(tmp_path, max_fraction=1, epoch_clips=1, rank=0, say=print),
        order=OrderLog(tmp_path, keep=False),
    )
    batches = stream.train(first_step=0)
    shown = [key for _ in range(run.steps) for key in next(batches).keys]

    assert sorted(shown) == sorted(row["key"] for row in rows)
    found = stream.substitutions()
    assert sorted(item.key for item in found) == lost
    assert not {item.substitute for item in found} & set(lost)
    assert files_of(damaged_dataset) == before  # nothing extracted, nothing unpickled
    assert not list(damaged_dataset.parent.rglob("unpickled"))
