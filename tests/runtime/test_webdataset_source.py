import json
from collections import Counter
from pathlib import Path

import pytest
import webdataset
from damage import SHARDS, clean, entries, make_samples, tar_of

from hstvg.runtime.errors import ConfigError
from hstvg.runtime.index import read_index
from hstvg.runtime.ingest import ingest, preview
from hstvg.runtime.shard import checksum
from hstvg.runtime.source_webdataset import WebDatasetSource
from hstvg.runtime.verify import verify


def write_shards(folder, *names, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.tar").write_bytes(clean(make_samples(name)))
    for name, content in contents.items():
        (folder / f"{name}.tar").write_bytes(content)
    return folder


def rejected_of(out):
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def index_shards(folder, out, **settings):
    return ingest(WebDatasetSource(path=str(folder), **settings), out, clips_per_shard=256)


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- whole shards -----------------------------------------------------------------------------


@pytest.mark.ray
def test_shards_are_indexed_where_they_lie_and_stay_as_they_were(ray_cluster, tmp_path):
    import ray.data

    shards = write_shards(tmp_path / "theirs" / "deep", "a", "b")
    before = content_of(shards)
    summary = index_shards(tmp_path / "theirs", tmp_path / "out")
    assert (summary.num_clips, summary.refused) == (8, {})
    assert summary.splits == {"train": 8}
    names = {"index.parquet", "rejected.jsonl", "dataset.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert content_of(shards) == before

    members = {name: data for prefix in "ab" for name, data in entries(make_samples(prefix))}
    for row in read_index(tmp_path / "out").table.to_pylist():
        assert Path(row["shard"]).parent == shards
        whole = before[Path(row["shard"])]
        video = whole[row["offset"] : row["offset"] + row["size"]]
        assert video == members[f"{row['key']}.mp4"]
        assert row["checksum"] == checksum(video)
        facts = whole[row["json_offset"] : row["json_offset"] + row["json_size"]]
        assert facts == members[f"{row['key']}.json"]
        assert row["json_checksum"] == checksum(facts)
        assert (row["num_frames"], row["width"], row["height"], row["fps"]) == (4, 16, 16, 8.0)
    assert not verify(tmp_path / "out").faults

    paths = [str(shards / "a.tar"), str(shards / "b.tar")]
    seen = {s["__key__"]: s["mp4"] for s in webdataset.WebDataset(paths, shardshuffle=False)}
    rows = ray.data.read_webdataset(paths).take_all()
    assert seen == {row["__key__"]: row["mp4"] for row in rows}
    assert seen.keys() == set(read_index(tmp_path / "out").table.column("key").to_pylist())


@pytest.mark.ray
def test_captions_come_from_text_too_and_splits_from_a_hash(ray_cluster, tmp_path):
    samples = make_samples("a")
    video = samples[0].video
    content = tar_of(
        [
            *((f"dir/{n:02d}.webm", video) for n in range(30)),
            *((f"dir/{n:02d}.TXT", f" clip\n{n} ".encode()) for n in range(30)),
            ("dir/00.json", b'{"author": "me"}'),
            ("dir/00.npy", b"not asked about"),
            ("README", b"not asked about"),
            ("._00.mp4", b"what macOS leaves"),
        ]
    )
    summary = index_shards(write_shards(tmp_path / "s", a=content), tmp_path / "out")
    rows = {row["key"]: row for row in read_index(tmp_path / "out").table.to_pylist()}
    assert (len(rows), summary.refused) == (30, {})
    assert rows["dir/07"]["caption"] == "clip 7"
    assert rows["dir/07"]["json_size"] == rows["dir/07"]["json_offset"] == 0
    assert rows["dir/07"]["json_checksum"] == ""
    assert rows["dir/00"]["json_size"] == len(b'{"author": "me"}')
    assert set(summary.splits) == {"train", "val"}


@pytest.mark.ray
def test_a_key_in_two_shards_and_a_shard_under_two_names_count_once(ray_cluster, tmp_path):
    shards = write_shards(tmp_path / "s", "a", b=clean(make_samples("a")[:3]))
    (shards / "c.tar").symlink_to(shards / "a.tar")
    write_shards(tmp_path, "outside")
    (shards / "d.tar").symlink_to(tmp_path / "outside.tar")
    (shards / "e.tar.gz").write_bytes(b"\x1f\x8b")
    summary = index_shards(shards, tmp_path / "out")
    assert summary.num_clips == 4
    assert summary.refused == {
        "duplicate key": 3,
        "duplicate": 1,
        "symlink leaves the folder": 1,
        "compressed": 1,
    }


@pytest.mark.parametrize(
    ("path", "said"), [("nowhere", "no .tar file"), ("packed", "unpack"), ("*.txt", "no .tar file")]
)
def test_where_there_is_no_shard_nothing_starts(tmp_path, path, said):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.tar.gz").touch()
    with pytest.raises(ConfigError, match=said):
        WebDatasetSource(path=str(tmp_path / path)).items()


def test_a_dry_run_counts_shards(tmp_path):
    write_shards(tmp_path / "s", "a", "b")
    source = WebDatasetSource(path=f"{tmp_path}/s/[ab].tar")
    assert "an index of 2 shards, 0.0 MB" in preview(source, tmp_path / "out", 256)
    assert not (tmp_path / "out").exists()


# ---- damaged shards ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def salvaged(ray_cluster, damaged_shards, tmp_path_factory):
    """The data set that all damaged shards together give."""
    folder = tmp_path_factory.mktemp("salvaged")
    shards = damaged_shards["empty"].parent
    before = content_of(shards.parent)
    index_shards(shards, folder / "out")
    assert content_of(shards.parent) == before
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert not list(Path("/tmp").glob("*-evil.mp4"))
    return folder / "out"


@pytest.mark.ray
@pytest.mark.parametrize("kind", SHARDS)
def test_a_damaged_shard_gives_what_is_whole_and_lists_the_rest(salvaged, damaged_shards, kind):
    shard = str(damaged_shards[kind])
    rows = read_index(salvaged).table.to_pylist()
    assert {row["key"] for row in rows if row["shard"] == shard} == SHARDS[kind].keys(kind)
    reasons = [
        entry["reason"].split(":")[0]
        for entry in rejected_of(salvaged)
        if entry["source"] == shard or entry["source"].startswith(f"{shard}/")
    ]
    assert Counter(reasons) == SHARDS[kind].refused


@pytest.mark.ray
def test_what_was_salvaged_is_whole_and_known_by_its_refusals(salvaged):
    assert verify(salvaged).faults == []


@pytest.mark.ray
@pytest.mark.parametrize("kind", SHARDS)
def test_verify_counts_the_faults_of_a_damaged_shard(verdict, kind):
    about = [fault for fault in verdict.faults if fault.startswith(f"shards/{kind}.tar: ")]
    assert len(about) == SHARDS[kind].faults, about
    assert not any("\n" in fault for fault in about)


@pytest.fixture(scope="module")
def verdict(ray_cluster, damaged_dataset):
    before = content_of(damaged_dataset)
    found = verify(damaged_dataset)
    assert content_of(damaged_dataset) == before
    assert len(found.faults) == sum(kind.faults for kind in SHARDS.values())
    return found
