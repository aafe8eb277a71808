import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from hstvg.data.decode import decode_window
from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.index import read_index
from hstvg.runtime.ingest import ingest, preview
from hstvg.runtime.shard import checksum
from hstvg.runtime.source import Refused, ShapeSource, Source
from hstvg.runtime.source_folder import FolderSource

REPOSITORY = Path(__file__).resolve().parents[2]


def write_video(path, *, width=48, height=32, fps=12, num_frames=12, codec="libx264"):
    """A moving ramp. 4:4:4 where the sides are odd, which 4:2:0 cannot hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if (width | height) % 2 else "yuv420p"
        for number in range(num_frames):
            ramp = (np.arange(width)[None, :, None] * 4 + 9 * number) % 256
            image = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def caption(path, text="a ramp moves"):
    path.with_suffix(".txt").write_text(text, "utf-8")


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    """What people have: good videos of all sorts, and one of every kind of trouble."""
    root = tmp_path_factory.mktemp("odd") / "my videos"
    outside = write_video(root.parent / "outside.mp4")
    good = [
        write_video(root / "plain.mp4"),
        write_video(root / "odd.size.v2.mp4", width=37, height=51),
        write_video(root / "sub/deep/large.mkv", width=400, height=100, fps=25, num_frames=30),
        write_video(root / "Slow.MOV", fps=5, num_frames=7),
        write_video(root / "übung 1.avi", codec="mpeg4"),
    ]
    for path in good:
        caption(path)
    good[0].with_suffix(".txt").write_text("\ufeff  a\tramp\n moves\x00 \x1b[31mright ", "utf-8")
    good[3].with_suffix(".txt").unlink()
    good[3].with_suffix(".json").write_text(json.dumps({"caption": "from json", "fps": 99}))

    cut = write_video(root / "cut.mp4", num_frames=60)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (root / "zero.mp4").touch()
    (root / "text.mp4").write_text("I am not a video\n" * 100)
    write_video(root / "single.mp4", num_frames=1)
    for name in ("cut", "zero", "text", "single", "link"):
        caption(root / f"{name}.mp4")
    (root / "link.mp4").symlink_to(outside)
    (root / "linked").symlink_to(outside.parent, target_is_directory=True)
    write_video(root / "silent.mp4")
    caption(write_video(root / "blank.mp4"), " \n\t ")
    write_video(root / "bad json.mp4").with_suffix(".json").write_text("{")
    write_video(root / "leak.mp4").with_suffix(".txt").symlink_to("/etc/hostname")
    write_video(root / ".hidden.mp4")
    (root / "notes.md").write_text("not asked about")
    return root


def read_rejected(out):
    lines = (out / "rejected.jsonl").read_text().splitlines()
    return {entry["source"]: entry["reason"] for entry in map(json.loads, lines)}


def read_members(index):
    """Caption -> (MP4, JSON) of every row, read at the offsets of the index alone."""
    found = {}
    for row in index.table.to_pylist():
        whole = (Path(index.root) / row["shard"]).read_bytes()
        video = whole[row["offset"] : row["offset"] + row["size"]]
        facts = json.loads(whole[row["json_offset"] : row["json_offset"] + row["json_size"]])
        assert checksum(video) == row["checksum"]
        found[row["key"]] = (video, facts)
    return found


# ---- sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [ShapeSource(num_clips=3), FolderSource(path=".")])
def test_a_source_is_a_source(source):
    assert isinstance(source, Source)


def test_a_shape_clip_is_what_its_facts_say():
    source = ShapeSource(num_clips=4, seed=3, num_frames=9, fps=6.0, height=32, width=48)
    for item in source.items():
        sample = source.sample(item)
        assert sample == source.sample(item)
        facts = sample.facts
        assert (facts["num_frames"], facts["height"], facts["width"]) == (9, 32, 48)
        assert facts["split"] in ("train", "val", "unseen")
        assert facts["caption"].startswith("a ")
        assert facts["scene"]["objects"]
        clip = decode_window(sample.video, start_s=0.0, num_frames=9, fps=6.0, height=32, width=48)
        assert clip.std() > 1.0


def test_shape_data_sets_of_two_seeds_share_no_clip():
    seeds = [{item["seed"] for item in ShapeSource(seed=s, num_clips=9).items()} for s in (0, 1)]
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize("wrong", [{"num_clips": 0}, {"max_shapes": 9}, {"height": 33}])
def test_shapes_that_cannot_be_rendered_are_refused_before_the_start(wrong):
    with pytest.raises(ConfigError):
        ShapeSource(**wrong).items()


def ask_here(name, question, items):
    """An Ask without Ray."""

    def answer(item):
        try:
            return question(item)
        except Refused as refusal:
            return refusal

    return [answer(item) for item in items]


def only_sample(source, name):
    (item,) = [item for item in source.settle(source.items(), ask_here) if item["name"] == name]
    if "refusal" in item:
        raise Refused(item["refusal"])
    (outcome,) = source.samples(item)
    if isinstance(outcome, Refused):
        raise outcome
    return outcome


def sample_of(root, name, **settings):
    return only_sample(FolderSource(path=str(root), val_fraction=0.0, **settings), name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut.mp4", "unreadable: "),
        ("zero.mp4", "unreadable: "),
        ("text.mp4", "unreadable: "),
        ("single.mp4", "too short: 1 of at least 2 frames"),
        ("silent.mp4", "no caption"),
        ("blank.mp4", "no caption"),
        ("bad json.mp4", "unreadable caption: bad json.json: "),
        ("link.mp4", "symlink leaves the folder: link.mp4"),
        ("leak.mp4", "symlink leaves the folder: leak.txt"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(odd_folder, name, reason):
    with pytest.raises(Refused) as caught:
        sample_of(odd_folder, name)
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_captions_are_cleaned_and_found(odd_folder):
    assert sample_of(odd_folder, "plain.mp4").facts["caption"] == "a ramp moves [31mright"
    assert sample_of(odd_folder, "Slow.MOV").facts["caption"] == "from json"


def test_large_videos_shrink_and_odd_sides_become_even(odd_folder):
    large = sample_of(odd_folder, "sub/deep/large.mkv", max_side=100).facts
    assert (large["width"], large["height"], large["fps"]) == (100, 24, 25.0)
    odd = sample_of(odd_folder, "odd.size.v2.mp4").facts
    assert odd["width"] % 2 == odd["height"] % 2 == 0


def test_keys_have_no_dots_and_tell_equal_stems_apart(odd_folder):
    key = sample_of(odd_folder, "odd.size.v2.mp4").key
    assert "." not in key
    assert key.startswith("odd-size-v2-")


def test_a_folder_item_does_not_depend_on_the_folders_place(odd_folder, tmp_path):
    os.symlink(odd_folder, tmp_path / "moved")
    here, there = (FolderSource(path=str(p)).items() for p in (odd_folder, tmp_path / "moved"))
    assert here == there


def write_table(root, kind, rows):
    if kind == "csv":
        lines = ["file,caption", *(f'{file},"{text}"' for file, text in rows)]
        (root / "captions.csv").write_text("\ufeff" + "\r\n".join(lines), "utf-8")
    elif kind == "jsonl":
        lines = [json.dumps({"file": file, "caption": text}) for file, text in rows]
        (root / "captions.jsonl").write_text("\n".join(lines) + "\n\n")
    else:
        files, texts = zip(*rows, strict=True)
        pq.write_table(pa.table({"file": files, "caption": texts}), root / "captions.parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_captions_come_from_a_table(tmp_path, kind):
    for name in ("a.mp4", "sub/b.mp4"):
        write_video(tmp_path / name)
    rows = [("a.mp4", "one, two"), ("./sub/b.mp4", "three"), ("gone.mp4", "four")]
    write_table(tmp_path, kind, rows)
    source = FolderSource(path=str(tmp_path))
    assert only_sample(source, "a.mp4").facts["caption"] == "one, two"
    assert only_sample(source, "sub/b.mp4").facts["caption"] == "three"
    with pytest.raises(Refused, match="missing"):
        only_sample(source, "gone.mp4")


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("captions.csv", b"path,caption\na.mp4,b\n"),
        ("captions.csv", b"file,caption\na.mp4,\xff\n"),
        ("captions.jsonl", b"{"),
        ("captions.jsonl", b"[1]\n"),
        ("captions.parquet", b"PAR1"),
    ],
)
def test_a_broken_table_is_a_configuration_error(tmp_path, table, content):
    write_video(tmp_path / "a.mp4")
    (tmp_path / table).write_bytes(content)
    with pytest.raises(ConfigError, match=table) as caught:
        FolderSource(path=str(tmp_path)).items()
    assert "\n" not in str(caught.value)


def test_a_small_folder_still_has_a_clip_to_validate_on(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.mp4").touch()  # unreadable, so of no use to hold out
        caption(tmp_path / f"{name}.mp4")
    for name in ("good", "fine"):
        caption(write_video(tmp_path / f"{name}.mp4"))

    def held_out(source):
        items = source.settle(source.items(), ask_here)
        return {item["name"] for item in items if item["held_out"]}

    assert len(held_out(FolderSource(path=str(tmp_path))) & {"good.mp4", "fine.mp4"}) == 1
    assert not held_out(FolderSource(path=str(tmp_path), val_fraction=0.0))


# ---- the whole way, on Ray --------------------------------------------------------------------


@pytest.mark.ray
def test_shapes_become_a_data_set_that_others_can_read(ray_cluster, tmp_path):
    import ray.data

    summary = ingest(ShapeSource(num_clips=20), tmp_path / "a", clips_per_shard=8)
    assert (summary.num_clips, summary.refused) == (20, {})
    index = read_index(tmp_path / "a")
    assert index.table.column("key").to_pylist() == [f"{number:08d}" for number in range(20)]
    members = read_members(index)
    shards = sorted((tmp_path / "a" / "shards").iterdir())
    assert [shard.name for shard in shards] == ["000000.tar", "000001.tar", "000002.tar"]

    read = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False)
    assert {sample["__key__"]: sample["mp4"] for sample in read} == {
        key: video for key, (video, _) in members.items()
    }
    rows = ray.data.read_webdataset([str(shard) for shard in shards]).take_all()
    assert {row["__key__"]: row["mp4"] for row in rows} == {
        key: video for key, (video, _) in members.items()
    }
    assert {row["__key__"]: row["json"] for row in rows} == {
        key: facts for key, (_, facts) in members.items()
    }
    record = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert record["index_hash"] == index.hash
    assert record["num_bytes"] == sum(shard.stat().st_size for shard in shards)
    assert record["transform"]["source"] == "ShapeSource"
    assert sum(record["splits"].values()) == record["num_clips"] == 20


def content_of(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.ray
def test_the_same_source_gives_the_same_bytes(ray_cluster, tmp_path):
    for name in "ab":
        ingest(ShapeSource(num_clips=12), tmp_path / name, clips_per_shard=2)
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")
    ingest(ShapeSource(num_clips=12, seed=1), tmp_path / "c", clips_per_shard=2)
    assert read_index(tmp_path / "c").hash != read_index(tmp_path / "a").hash


@pytest.mark.ray
def test_a_folder_of_odd_videos_becomes_a_data_set(ray_cluster, odd_folder, tmp_path):
    summary = ingest(FolderSource(path=str(odd_folder)), tmp_path / "mine", clips_per_shard=3)
    assert summary.num_clips == 5
    assert summary.refused == {
        "unreadable": 3,
        "symlink leaves the folder": 2,
        "no caption": 2,
        "unreadable caption": 1,
        "too short": 1,
        "symlinked folder": 1,
    }
    assert sum(summary.splits.values()) == 5
    assert summary.splits["val"] >= 1
    rejected = read_rejected(tmp_path / "mine")
    assert len(rejected) == 10
    assert rejected["silent.mp4"] == "no caption"
    sources = {facts["source"] for _, facts in read_members(read_index(tmp_path / "mine")).values()}
    names = {"plain.mp4", "odd.size.v2.mp4", "sub/deep/large.mkv", "Slow.MOV", "übung 1.avi"}
    assert sources == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    assert "see" in str(summary)


@pytest.mark.ray
def test_the_same_command_again_does_nothing_and_another_is_refused(ray_cluster, tmp_path):
    out = tmp_path / "a"
    first = ingest(ShapeSource(num_clips=4), out, clips_per_shard=4)
    before = content_of(out)
    again = ingest(ShapeSource(num_clips=4), out, clips_per_shard=4)
    assert (first.already_there, again.already_there) == (False, True)
    assert "already prepared" in str(again)
    for other in (ShapeSource(num_clips=5), ShapeSource(num_clips=4, seed=1)):
        with pytest.raises(ConfigError, match="choose another out="):
            ingest(other, out, clips_per_shard=4)
        with pytest.raises(ConfigError, match="choose another out="):
            preview(other, out, clips_per_shard=4)
    assert content_of(out) == before


@pytest.mark.ray
def test_a_folder_that_changed_is_another_source(ray_cluster, tmp_path):
    caption(write_video(tmp_path / "in" / "a.mp4"))
    source = FolderSource(path=str(tmp_path / "in"))
    ingest(source, tmp_path / "out", clips_per_shard=4)
    caption(tmp_path / "in" / "a.mp4", "another caption")
    with pytest.raises(ConfigError, match="another source"):
        ingest(source, tmp_path / "out", clips_per_shard=4)


@pytest.mark.ray
def test_when_all_is_refused_no_data_set_is_left(ray_cluster, tmp_path):
    write_video(tmp_path / "in" / "a.mp4")
    with pytest.raises(CommandError, match=r"1 no caption; for example a\.mp4") as caught:
        ingest(FolderSource(path=str(tmp_path / "in")), tmp_path / "out", clips_per_shard=4)
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.ray
def test_what_a_killed_run_left_does_not_get_into_the_next(ray_cluster, tmp_path):
    left = tmp_path / ".out.prepare-partial" / "dataset" / "shards"
    left.mkdir(parents=True)
    (left / "000099.tar").write_bytes(b"half")
    ingest(ShapeSource(num_clips=4), tmp_path / "out", clips_per_shard=4)
    names = {"shards/000000.tar", "index.parquet", "rejected.jsonl", "dataset.json"}
    assert set(content_of(tmp_path / "out")) == names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.ray
def test_two_runs_cannot_make_one_data_set(ray_cluster, tmp_path):
    (tmp_path / ".out.prepare-partial").mkdir()
    with (tmp_path / ".out.prepare-partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="another prepare"):
            ingest(ShapeSource(num_clips=4), tmp_path / "out", clips_per_shard=4)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_not_written_into(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="no data set"):
        ingest(ShapeSource(num_clips=4), tmp_path, clips_per_shard=4)


# ---- the command ------------------------------------------------------------------------------


def prepare(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.prepare", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["source.num_clip=3"], "source.num_clip"),
        (["source=folder"], "source.path"),
        (["source=folder", "source.path=nowhere"], "no such folder"),
        (["source=folder", "source.path=empty"], "no video"),
        (["source=webdataset", "source.path=empty"], "no .tar file"),
        (["source=webdataset", "source.path=empty", "source.max_side=9"], "source.max_side"),
        (["source=curator", "source.path=empty"], "metas/v0"),
        (["source=curator", "source.path=empty", "source.max_s=9"], "source.max_s"),
        (["source=folder", "source.path=empty", "source.policy=pad"], "height and width"),
        (["clips_per_shard=0"], "clips_per_shard"),
    ],
)
def test_a_wrong_command_says_why_in_one_line(tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    done = prepare(tmp_path, "out=out", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_dry_run_makes_nothing(tmp_path):
    done = prepare(tmp_path, "out=out", "source.num_clips=300", "dry_run=true")
    assert done.returncode == 0
    assert "300 clips in 2 shards" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_cluster_that_does_not_answer_is_said_in_one_line(tmp_path):
    done = prepare(tmp_path, "out=out", "source.num_clips=4", RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert "RAY_ADDRESS=127.0.0.1:1" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_relative_paths_start_where_the_caller_stands(tmp_path):
    caption(write_video(tmp_path / "in" / "a.mp4"))
    done = prepare(tmp_path, "source=folder", "source.path=in", "out=deep/out", "num_cpus=1")
    assert (done.returncode, done.stderr.count("error")) == (0, 0)
    assert len(read_index(tmp_path / "deep" / "out")) == 1
