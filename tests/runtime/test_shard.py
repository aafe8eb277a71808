import json
import tarfile

import pytest
import webdataset

from hstvg.runtime.shard import Sample, checksum, replace_file, write_shard


def make_sample(number: int, *, size: int = 700) -> Sample:
    facts = {
        "caption": f"clip {number}, ünïcode",
        "fps": 8.0,
        "num_frames": 16,
        "width": 32,
        "height": 32,
        "split": "train",
    }
    return Sample(key=f"{number:04d}", video=bytes([number]) * size, facts=facts)


def make_shard(folder, *sizes):
    (folder / "shards").mkdir(parents=True)
    path = folder / "shards" / "000000.tar"
    samples = [make_sample(number, size=size) for number, size in enumerate(sizes)]
    return path, samples, write_shard(path, samples)


def test_offsets_give_the_exact_bytes_of_each_member(tmp_path):
    # 512 is a whole block, 0 no block at all: the padding is where an offset would go wrong.
    path, samples, rows = make_shard(tmp_path, 700, 512, 0, 1, 1025)
    whole = path.read_bytes()
    for sample, row in zip(samples, rows, strict=True):
        video = whole[row["offset"] : row["offset"] + row["size"]]
        facts = whole[row["json_offset"] : row["json_offset"] + row["json_size"]]
        assert video == sample.video
        assert json.loads(facts) == sample.facts
        assert row["checksum"] == checksum(video)
        assert (row["shard"], row["key"]) == ("shards/000000.tar", sample.key)
        assert row["caption"] == sample.facts["caption"]


def test_offsets_agree_with_tarfile(tmp_path):
    path, _, rows = make_shard(tmp_path, 700, 512, 3)
    with tarfile.open(path) as tar:
        members = {member.name: member.offset_data for member in tar}
    assert [members[f"{row['key']}.mp4"] for row in rows] == [row["offset"] for row in rows]


def test_the_bytes_depend_on_the_samples_alone(tmp_path):
    first, _, _ = make_shard(tmp_path / "a", 700, 512)
    second, _, _ = make_shard(tmp_path / "b", 700, 512)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_webdataset_reads_it(tmp_path):
    path, samples, _ = make_shard(tmp_path, 700, 512)
    read = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == ["0000", "0001"]
    assert [sample["mp4"] for sample in read] == [sample.video for sample in samples]
    assert json.loads(read[0]["json"]) == samples[0].facts


@pytest.mark.parametrize("key", ["a.b", "a/b", ""])
def test_a_key_that_webdataset_would_cut_is_refused_and_nothing_is_left(tmp_path, key):
    bad = Sample(key=key, video=b"x", facts=make_sample(0).facts)
    with pytest.raises(ValueError, match="key"):
        write_shard(tmp_path / "000000.tar", [make_sample(1), bad])
    assert not list(tmp_path.iterdir())


def test_a_repeated_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        write_shard(tmp_path / "000000.tar", [make_sample(1), make_sample(1)])


def test_no_samples_no_file(tmp_path):
    assert write_shard(tmp_path / "000000.tar", []) == []
    assert not list(tmp_path.iterdir())


def test_a_file_keeps_its_old_content_until_the_new_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half():
        with replace_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
