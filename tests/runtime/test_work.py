import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import crashing
import pytest
from crashing import KillerShards, KillerSource
from damage import clean, make_samples

from hstvg.runtime.errors import CommandError
from hstvg.runtime.index import read_index
from hstvg.runtime.ingest import ingest
from hstvg.runtime.source import ShapeSource
from hstvg.runtime.source_webdataset import WebDatasetSource

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray


def content_of(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def keys_of(out):
    return read_index(out).table.column("key").to_pylist()


@pytest.fixture(autouse=True)
def _workers_know_the_killers(ray_cluster):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(crashing)
    yield
    cloudpickle.unregister_pickle_by_value(crashing)


# ---- what kills a worker ----------------------------------------------------------------------


@pytest.mark.parametrize("asked", [False, True])
def test_clips_that_kill_their_worker_are_refused_and_no_others(ray_cluster, tmp_path, asked):
    source = KillerSource(num_clips=12, killers=(5, 6), bugs=(7,), asked=asked)
    summary = ingest(source, tmp_path / "out", clips_per_shard=4)
    assert keys_of(tmp_path / "out") == [f"{n:08d}" for n in range(12) if n not in (5, 6, 7)]
    assert summary.refused == {"crashed the decoder": 2, "failed": 1}
    reasons = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "ZeroDivisionError: of clip" in reasons
    assert "and more" not in reasons


def test_a_sample_of_a_shard_that_kills_costs_only_itself(ray_cluster, tmp_path):
    (tmp_path / "a.tar").write_bytes(clean(make_samples("a")))
    (tmp_path / "b.tar").write_bytes(clean(make_samples("b")))
    shards = WebDatasetSource(path=str(tmp_path), val_fraction=0.0)
    source = KillerShards(shards=shards, killer="a-2")
    summary = ingest(source, tmp_path / "out", clips_per_shard=256)
    assert (summary.num_clips, summary.refused) == (7, {"crashed the decoder": 1})
    assert set(keys_of(tmp_path / "out")) == {f"{s}-{n}" for s in "ab" for n in range(4)} - {"a-2"}


def test_when_every_clip_kills_no_data_set_is_left(ray_cluster, tmp_path):
    with pytest.raises(CommandError, match="2 crashed the decoder"):
        ingest(KillerSource(num_clips=2, killers=(0, 1)), tmp_path / "out", clips_per_shard=2)
    assert not list(tmp_path.iterdir())


# ---- what stops a run -------------------------------------------------------------------------

NUM_SHARDS, PER_SHARD = 8, 200
NUM_CLIPS = NUM_SHARDS * PER_SHARD
"""So many that a run still works, for a second or two, when it is stopped after two shards."""
SOURCE = ShapeSource(num_clips=NUM_CLIPS)


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.prepare", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_records(staging, number):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = list((staging / "records").glob("[0-9]*.json"))
        if len(found) >= number:
            return
        time.sleep(0.02)
    raise AssertionError("no shard was finished in time")


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    ingest(SOURCE, out, clips_per_shard=PER_SHARD)
    return content_of(out)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(undisturbed, tmp_path, capsys, how):
    sizes = (f"source.num_clips={NUM_CLIPS}", f"clips_per_shard={PER_SHARD}")
    process = start(tmp_path, *sizes, "out=out", "num_cpus=1")
    staging = tmp_path / ".out.prepare-partial"
    wait_for_records(staging, 2)
    if how == signal.SIGKILL:
        os.killpg(process.pid, how)  # Ray's processes with it
        process.communicate()
    else:
        os.kill(process.pid, how)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75
        assert "run the same command again" in said.splitlines()[-1]
    assert not (tmp_path / "out").exists()

    shards = {path.stem for path in (staging / "dataset" / "shards").glob("[0-9]*.tar")}
    done = {path.stem.split("-")[0] for path in (staging / "records").glob("[0-9]*.json")}
    assert 2 <= len(done) < NUM_SHARDS
    assert done <= shards
    before = {name: (staging / "dataset" / "shards" / f"{name}.tar").stat() for name in done}

    summary = ingest(SOURCE, tmp_path / "out", clips_per_shard=PER_SHARD)
    assert f"continuing: {len(done)} of {NUM_SHARDS} shards are there" in capsys.readouterr().err
    assert summary.num_clips == NUM_CLIPS
    for name, stat in before.items():
        after = (tmp_path / "out" / "shards" / f"{name}.tar").stat()
        assert (after.st_ino, after.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    assert content_of(tmp_path / "out") == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def leave_half(tmp_path, source, clips_per_shard):
    """What a run killed after all shards, and before the lists, would leave."""
    ingest(source, tmp_path / "out", clips_per_shard)
    from hstvg.runtime import ingest as module

    keep = module._finish
    try:
        module._finish = _interrupted
        with pytest.raises(KeyboardInterrupt):
            ingest(source, tmp_path / "half", clips_per_shard)
    finally:
        module._finish = keep
    return tmp_path / ".half.prepare-partial"


def _interrupted(*arguments):
    raise KeyboardInterrupt


def test_a_shard_that_does_not_match_its_record_is_made_again(ray_cluster, tmp_path, capsys):
    source = ShapeSource(num_clips=8)
    staging = leave_half(tmp_path, source, 2)
    shards = staging / "dataset" / "shards"
    (shards / "000001.tar").write_bytes(b"short")
    (shards / "000002.tar").unlink()
    (shards / "000099.tar").write_bytes(b"stray")
    record = next((staging / "records").glob("000003-*.json"))
    record.write_text("{")
    capsys.readouterr()
    ingest(source, tmp_path / "half", clips_per_shard=2)
    assert "continuing: 1 of 4 shards" in capsys.readouterr().err
    assert content_of(tmp_path / "half") == content_of(tmp_path / "out")


def test_another_identity_starts_afresh(ray_cluster, tmp_path, capsys):
    leave_half(tmp_path, ShapeSource(num_clips=8), 2)
    capsys.readouterr()
    ingest(ShapeSource(num_clips=8, seed=1), tmp_path / "half", clips_per_shard=2)
    assert "continuing" not in capsys.readouterr().err
    record = json.loads((tmp_path / "half" / "dataset.json").read_text())
    assert record["transform"]["seed"] == 1
