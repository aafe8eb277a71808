"""A folder of odd and broken footage, from ingestion to batches: exact counts, and no clip lost."""

import csv
import shutil
from collections import Counter
from itertools import islice

import pytest
import torch
from footage import Good

from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.index import read_index
from hstvg.runtime.ingest import ingest
from hstvg.runtime.order import OrderLog, read_records
from hstvg.runtime.quarantine import Quarantine
from hstvg.runtime.source_folder import FolderSource
from hstvg.runtime.stream import WorkerStream, open_feed

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def footage(odd_videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("footage")
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption"])
        for name, (path, _) in odd_videos.items():
            (folder / name).mkdir()
            shutil.copy(path, folder / name / path.name)
            table.writerow([f"{name}/{path.name}", f"footage of {name}"])
    return folder


def test_every_kind_of_footage_is_taken_or_refused_and_none_stops_the_work(
    ray_cluster, odd_videos, footage, tmp_path
):
    before = sorted(footage.rglob("*"))
    source = FolderSource(path=str(footage), max_side=64, min_frames=1)
    summary = ingest(source, tmp_path / "data", clips_per_shard=8)
    good = {name for name, (_, verdict) in odd_videos.items() if isinstance(verdict, Good)}
    assert len(odd_videos) >= 20
    assert len(good) < len(odd_videos)
    rows = read_index(tmp_path / "data").table.to_pylist()
    assert Counter(row["caption"] for row in rows) == Counter(f"footage of {n}" for n in good)
    rejected = list(read_records(tmp_path / "data" / "rejected.jsonl"))
    assert {record["source"].split("/")[0] for record in rejected} == set(odd_videos) - good
    assert len(rejected) == len(odd_videos) - len(good) == sum(summary.refused.values())
    assert sorted(footage.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]

    run = RunFacts(name="run", steps=20, global_batch=4, micro_batch=4)
    window = {"num_frames": 4, "fps": 6.0, "height": 32, "width": 32}
    data = DataFacts(path=str(tmp_path / "data"), motion=True, **window)
    stream = WorkerStream(
        feed=open_feed(run, data),
        run=run,
        data=data,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=Quarantine(tmp_path, max_fraction=0, epoch_clips=1, rank=0, say=print),
        order=OrderLog(tmp_path, keep=False),
    )
    shown = {key for batch in islice(stream.train(0), 10) for key in batch.keys}
    assert shown == {row["key"] for row in rows if row["split"] == "train"}
    assert stream.substitutions() == []
