import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hstvg.runtime.errors import ConfigError
from hstvg.runtime.index import SCHEMA, hash_table, read_index, write_index


def make_rows(num_rows: int = 4):
    return [
        {
            "shard": "shards/000000.tar",
            "key": f"{number:04d}",
            "offset": 1536 * number,
            "size": 100 + number,
            "json_offset": 1536 * number + 1024,
            "json_size": 20,
            "num_frames": 16,
            "width": 32,
            "height": 24,
            "fps": 7.5,
            "caption": f"clip {number} ü",
            "split": "val" if number % 4 == 3 else "train",
            "checksum": f"sha256:{number:064d}",
            "json_checksum": f"sha256:{number + 1:064d}",
        }
        for number in range(num_rows)
    ]


def test_what_is_written_is_read(tmp_path):
    written = write_index(tmp_path, make_rows())
    index = read_index(tmp_path)
    assert index.table.to_pylist() == make_rows()
    assert (len(index), index.hash, index.root) == (4, written.hash, str(tmp_path))
    assert index.fact("fps").tolist() == [7.5] * 4
    assert index.shard_numbers.tolist() == [0] * 4
    assert index.rows_of("train").tolist() == [0, 1, 2]
    assert index.rows_of("val").tolist() == [3]
    assert index.rows_of("unseen").tolist() == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.parquet"]


def test_the_hash_does_not_know_the_folder(tmp_path):
    (tmp_path / "a").mkdir()
    first = write_index(tmp_path / "a", make_rows())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read_index(tmp_path / "b").hash == first.hash


def test_the_hash_does_not_know_arrows_chunks():
    table = pa.Table.from_pylist(make_rows(), schema=SCHEMA)
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    padded = pa.Table.from_pylist(make_rows()[:1] + make_rows(), schema=SCHEMA).slice(1)
    assert hash_table(pieces) == hash_table(padded) == hash_table(table)


@pytest.mark.parametrize("column", SCHEMA.names)
def test_the_hash_sees_every_column(column):
    rows = make_rows()
    changed = make_rows()
    value = changed[2][column]
    changed[2][column] = f"{value}x" if isinstance(value, str) else value + 1
    tables = [pa.Table.from_pylist(r, schema=SCHEMA) for r in (rows, changed)]
    assert hash_table(tables[0]) != hash_table(tables[1])


def test_the_hash_sees_order_and_the_ends_of_texts():
    rows = make_rows()
    moved = make_rows()
    moved[0]["caption"], moved[1]["caption"] = "clip 0 üc", "lip 1 ü"
    tables = [pa.Table.from_pylist(r, schema=SCHEMA) for r in (rows, rows[::-1], moved)]
    assert len({hash_table(table) for table in tables}) == 3


def test_the_hash_stays_what_it_was():
    # Runs in the world store this hash; a new library version must not change it.
    table = pa.Table.from_pylist(make_rows(), schema=SCHEMA)
    assert hash_table(table).startswith("6bf619609a742d7a")


def test_a_repeated_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        write_index(tmp_path, make_rows() + make_rows()[:1])


def damage(root, kind):
    path = root / "index.parquet"
    if kind == "no folder":
        return root / "nowhere"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "no index":
        path.unlink()
    elif kind == "no rows":
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    elif kind == "no column":
        pq.write_table(pq.read_table(path).drop_columns(["offset"]), path)
    return root


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no folder", "does not exist"),
        ("no index", "no index.parquet"),
        ("cut", "unreadable"),
        ("empty file", "unreadable"),
        ("no rows", "no rows"),
        ("no column", "no column offset"),
    ],
)
def test_a_missing_or_damaged_index_says_so_in_one_line(tmp_path, kind, said):
    write_index(tmp_path, make_rows())
    with pytest.raises(ConfigError) as caught:
        read_index(damage(tmp_path, kind))
    message = str(caught.value)
    assert said in message
    assert "python -m pipelines.prepare" in message
    assert "\n" not in message
