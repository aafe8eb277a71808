import pickle
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import CANARY, SHARDS, harmful_pickle, make_samples

from hstvg.runtime.command import run_command
from hstvg.runtime.ingest import ingest
from hstvg.runtime.source import ShapeSource
from pipelines import prepare


@pytest.fixture(scope="module")
def whole(ray_cluster, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    ingest(ShapeSource(num_clips=12), out, clips_per_shard=4)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command; gives exit code, lines of stdout and lines of stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command("prepare", prepare.__doc__, prepare.main)
        said = capsys.readouterr()
        return ended.value.code, said.out.splitlines(), said.err.splitlines()

    return run


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_index(folder, **columns):
    """Write the index anew with other values in its first row, and no hash to betray it."""
    table = pq.ParquetFile(folder / "index.parquet").read()
    rows = table.to_pylist()
    rows[0] |= columns
    changed = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(changed, folder / "index.parquet")


@pytest.mark.ray
def test_a_whole_data_set_is_said_to_be_whole_in_one_line(whole, command):
    before = content_of(whole)
    code, said, errors = command(f"verify={whole}")
    assert (code, errors) == (0, [])
    assert said == [f"{whole} is whole: 12 clips in 3 shards, 0.1 MB, every byte checked"]
    code, said, _ = command(f"verify={whole}", "dry_run=true")
    assert (code, len(said)) == (0, 1)
    assert "would be checked" in said[0]
    assert content_of(whole) == before


@pytest.mark.ray
def test_of_many_faults_twenty_are_printed_and_the_rest_counted(damaged_dataset, command):
    code, said, errors = command(f"verify={damaged_dataset}")
    number = sum(kind.faults for kind in SHARDS.values())
    assert (code, len(said), len(errors)) == (1, 22, 1)
    assert said[20] == f"... and {number - 20} more"
    assert f"is damaged: {number} faults" in errors[0]


@pytest.mark.ray
def test_a_missing_shard_costs_its_clips(copy, command):
    (copy / "shards" / "000001.tar").unlink()
    code, said, errors = command(f"verify={copy}")
    assert (code, len(errors)) == (1, 1)
    assert said[0] == "shards/000001.tar: missing, with 4 clips"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"caption": "a lie"}, None),
        ({"offset": 10**9}, "beyond the end"),
        ({"offset": -512}, "beyond the end"),
        ({"offset": 1024}, "at byte 1024 lies no member"),
        ({"size": 3}, "at byte 512 lies 00000000.mp4"),
        ({"key": "another"}, "at byte 512 lies 00000000.mp4"),
        ({"checksum": "sha256:0"}, "its video has other bytes"),
        ({"json_checksum": "sha256:0"}, "its JSON has other bytes"),
        ({"shard": "shards/none.tar"}, "not in dataset.json"),
    ],
)
def test_an_index_that_was_altered_is_found_out(copy, command, columns, fault):
    change_index(copy, **columns)
    code, said, _ = command(f"verify={copy}")
    assert code == 1
    assert said[0].startswith("index.parquet: not the one")
    about = [line for line in said[1:-1] if fault is not None and fault in line]
    assert len(about) == (fault is not None), said


@pytest.mark.ray
@pytest.mark.parametrize("name", ["index.parquet", "dataset.json", "rejected.jsonl"])
def test_a_damaged_list_is_said_in_one_line(copy, command, name):
    (copy / name).write_bytes(b"{")
    code, _, errors = command(f"verify={copy}")
    assert (code, len(errors)) == (1, 1)
    assert name in errors[0]


def test_where_there_is_no_data_set_nothing_is_checked(tmp_path, command):
    for path in (tmp_path, tmp_path / "nowhere"):
        code, _, errors = command(f"verify={path}")
        assert (code, len(errors)) == (2, 1)
        assert "no data set there" in errors[0]


def test_help_names_every_source(command):
    code, said, _ = command("--help")
    assert code == 0
    text = "\n".join(said)
    assert all(word in text for word in ("shapes", "folder", "curator", "webdataset", "verify="))


def test_the_pickle_in_the_shard_would_do_harm(tmp_path):
    payload = harmful_pickle(tmp_path / "unpickled")
    assert len(payload) == len(CANARY)
    pickle.loads(payload).close()
    assert (tmp_path / "unpickled").exists()
    content = SHARDS["pickle"].make("pickle", make_samples("pickle"))
    assert content.count(CANARY) == 1
