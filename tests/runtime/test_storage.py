"""Storage: the same bytes from a disk and from an object store, which here is a real S3 server."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from hstvg.runtime import storage
from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.index import read_index
from hstvg.runtime.order import OrderLog
from hstvg.runtime.quarantine import Quarantine
from hstvg.runtime.storage import absolute, exists, join, patiently, read_range
from hstvg.runtime.stream import WorkerStream, open_feed

SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
input()
"""


@pytest.fixture(scope="module")
def bucket(shapes_dataset) -> Iterator[str]:
    """The data set in a bucket of an S3 server of its own; yields its location."""
    import boto3

    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as server,
    ):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        assert server.stdout is not None
        port = int(server.stdout.readline())
        address = f"http://127.0.0.1:{port}"
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
        client.create_bucket(Bucket="footage")
        for file in sorted(shapes_dataset.rglob("*")):
            if file.is_file():
                key = f"team/shapes/{file.relative_to(shapes_dataset)}"
                client.upload_file(str(file), "footage", key)
        yield f"s3://footage/team/shapes?endpoint_override={address}&region=us-east-1"
        server.kill()


def batches(location: str, folder: Path, count: int = 6) -> list:
    run = RunFacts(name="run", steps=20, global_batch=8, micro_batch=4)
    window = {"num_frames": 8, "fps": 8.0, "height": 16, "width": 16, "motion": True}
    feed = open_feed(run, DataFacts(path=location, **window))
    stream = WorkerStream(
        feed=feed,
        run=run,
        data=DataFacts(path=location, **window),
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=Quarantine(folder, max_fraction=1, epoch_clips=80, rank=0, say=print),
        order=OrderLog(folder, keep=False),
    )
    got = list(islice(stream.train(0), count))
    assert stream.substitutions() == []
    return got


def test_an_object_store_gives_what_a_disk_gives(bucket, shapes_dataset, tmp_path):
    assert read_index(bucket).hash == read_index(shapes_dataset).hash
    pairs = zip(batches(bucket, tmp_path), batches(str(shapes_dataset), tmp_path), strict=True)
    for remote, local in pairs:
        assert remote.keys == local.keys
        assert torch.equal(remote.pixels, local.pixels)


def test_a_run_trains_from_an_object_store(bucket, run_locally, tmp_path):
    run = run_locally(tmp_path, "tok", f"data.path='{bucket}'", "run.steps=2")
    assert (run / "export" / "model.safetensors").is_file()
    assert "testing" not in (run / "config.yaml").read_text()  # credentials stay out


def test_ranges_are_read_and_ends_are_seen(bucket, shapes_dataset):
    whole = (shapes_dataset / "shards" / "000000.tar").read_bytes()
    for folder in (bucket, str(shapes_dataset)):
        shard = join(folder, "shards/000000.tar")
        assert read_range(shard, 700, 1000) == whole[700:1700]
        assert read_range(shard, len(whole) - 5, 5) == whole[-5:]
        with pytest.raises(EOFError, match="ends before byte"):
            read_range(shard, len(whole) - 5, 6)
        with pytest.raises(FileNotFoundError):
            read_range(join(folder, "shards/gone.tar"), 0, 1)


def test_what_is_not_there_is_said(bucket, tmp_path):
    assert exists(bucket)
    assert not exists(join(bucket, "gone"))
    nowhere = bucket.replace("shapes?", "nowhere?")
    with pytest.raises(ConfigError, match="does not exist"):
        read_index(nowhere)
    with pytest.raises(ConfigError, match="Unrecognized filesystem"):
        read_index("s5://bucket/data")


def test_a_location_is_joined_before_its_options():
    assert join("s3://b/data/?region=x", "shards/0.tar") == "s3://b/data/shards/0.tar?region=x"
    assert join("/data", "shards/0.tar") == "/data/shards/0.tar"
    assert join("/data", "/else/0.tar") == "/else/0.tar"
    assert join("/data", "gs://b/0.tar") == "gs://b/0.tar"
    assert absolute("s3://b/data") == "s3://b/data"
    assert absolute("data") == str(Path.cwd() / "data")


def test_a_storage_that_fails_in_passing_is_asked_again(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.0)
    calls = []

    def heals() -> str:
        calls.append(1)
        if len(calls) < 4:
            raise OSError("timeout")
        return "data"

    assert patiently(heals) == "data"
    assert len(calls) == 4


@pytest.mark.parametrize(("error", "asked"), [(OSError, 5), (FileNotFoundError, 1)])
def test_a_storage_that_does_not_heal_is_given_up(monkeypatch, error, asked):
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.0)
    calls = []

    def fails() -> None:
        calls.append(1)
        raise error("no")

    with pytest.raises(error):
        patiently(fails)
    assert len(calls) == asked
