"""The order log and its audit; the quarantine of damaged samples."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hstvg.runtime.errors import CommandError, ConfigError, Stopped
from hstvg.runtime.index import read_index
from hstvg.runtime.order import OrderLog, audit, keep_until, read_records
from hstvg.runtime.quarantine import Quarantine
from hstvg.train.ports import Substitution

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def audited(run_locally, tmp_path_factory) -> Path:
    """A finished run of 4 steps of 4 clips with its order log."""
    return run_locally(tmp_path_factory.mktemp("runs"), "tok", "run.log_samples=true")


@pytest.fixture
def run_copy(audited, tmp_path) -> Path:
    return Path(shutil.copytree(audited, tmp_path / "tok"))


def order(run: Path) -> list[dict]:
    return list(read_records(run / "order" / "rank_00000.jsonl"))


def rewrite(run: Path, records: list[dict]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (run / "order" / "rank_00000.jsonl").write_text(lines)


def test_every_sample_trained_is_written_down(audited, shapes_dataset):
    records = order(audited)
    assert [record["position"] for record in records] == list(range(16))
    assert [record["step"] for record in records] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    train = {row["key"] for row in read_index(shapes_dataset).table.to_pylist()}
    assert {record["key"] for record in records} <= train
    manifest = json.loads(
        (audited / "checkpoints" / "step_000000004" / "manifest.json").read_text()
    )
    assert manifest["samples"] == 16
    assert manifest["epoch"] == 0
    assert manifest["seed"] == 0
    assert manifest["global_batch"] == 4
    assert manifest["index_hash"] == read_index(shapes_dataset).hash


def test_the_command_audits_a_whole_run(audited):
    command = [sys.executable, "-m", "pipelines.train", f"audit={audited}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "passed: 4 steps, 16 positions, each trained exactly once" in done.stdout


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda r: [*r[:9], *r[10:]], "step 3: position 9 .* was not trained"),
        (lambda r: [*r[:6], r[5], *r[6:]], "step 2: position 5 .* was trained twice"),
        (lambda r: [*r[:3], {**r[3], "key": "other"}, *r[4:]], "step 1: position 3 was other"),
        (lambda r: [*r[:8], *r[12:]], "step 3: nothing was logged"),
        (lambda r: [{**r[0], "step": 2}, *r[1:]], "step 1: nothing was logged"),
        (lambda r: [*r[:7], {**r[7], "position": 12}, *r[8:]], "position 12 .* another step"),
    ],
    ids=["left out", "twice", "another sample", "a step left out", "moved", "out of place"],
)
def test_the_audit_names_the_first_fault(run_copy, fault, said):
    rewrite(run_copy, fault(order(run_copy)))
    with pytest.raises(CommandError, match=said):
        audit(run_copy)


def test_steps_that_will_be_trained_again_are_no_fault(run_copy):
    """Killed after the checkpoint of step 4: step 5 is half written, its last line torn."""
    later = [*order(run_copy), {"step": 5, "position": 16, "key": "any"}]
    rewrite(run_copy, later)
    with (run_copy / "order" / "rank_00000.jsonl").open("a") as file:
        file.write('{"step": 5, "posi')
    assert "passed: 4 steps" in audit(run_copy)


def test_an_audit_needs_a_log_and_the_same_data(run_copy, shapes_dataset, tmp_path):
    with pytest.raises(ConfigError, match="no run folder"):
        audit(tmp_path / "nowhere")
    config = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(config.replace("seed: 0", "seed: 1"))
    with pytest.raises(CommandError, match="step 1: position 0"):
        audit(run_copy)
    shutil.rmtree(run_copy / "order")
    with pytest.raises(ConfigError, match=r"run\.log_samples=true"):
        audit(run_copy)


def test_a_restart_takes_back_what_it_trains_again(tmp_path):
    """Of two ranks, one is no more: rank 0 cuts its file too."""
    (tmp_path / "order").mkdir()
    for rank in (0, 1):
        records = [{"step": s, "position": 2 * s + rank, "key": "k"} for s in range(1, 6)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "order" / f"rank_{rank:05d}.jsonl").write_text(lines + '{"torn')
    OrderLog(tmp_path, keep=False).begin(3, rank=0, world_size=1)
    for rank in (0, 1):
        steps = [r["step"] for r in read_records(tmp_path / "order" / f"rank_{rank:05d}.jsonl")]
        assert steps == [1, 2, 3]


def test_keeping_until_a_step_of_no_file_makes_none(tmp_path):
    keep_until(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("last", [0, 1, 2, 4_000, 4_001, 9_999, 10_000])
@pytest.mark.parametrize("tail", [b"", b'{"step": 10', bytes(100) + b"\n"])
def test_a_long_log_is_cut_at_its_step(tmp_path, last, tail):
    """10,000 steps of two lines each are many blocks; a crash may leave half a line, or zeros."""
    file = tmp_path / "rank_00000.jsonl"
    lines = [b'{"step": %d, "position": %d}\n' % (n // 2 + 1, n) for n in range(20_000)]
    file.write_bytes(b"".join(lines) + tail)
    keep_until(file, last)
    assert file.read_bytes() == b"".join(lines[: 2 * last])


# ---- quarantine -------------------------------------------------------------------------------


def damaged(step: int, position: int) -> Substitution:
    key = f"clip{position}"
    return Substitution(step=step, position=position, key=key, reason="cut", substitute="spare")


def quarantine(folder: Path, rank: int = 0, *, epoch_clips=1000, said=None) -> Quarantine:
    say = (said if said is not None else []).append
    return Quarantine(folder, max_fraction=0.01, epoch_clips=epoch_clips, rank=rank, say=say)


def test_damage_is_named_once_and_taken_back_on_a_restart(tmp_path):
    said: list[str] = []
    first, second = quarantine(tmp_path, said=said), quarantine(tmp_path, rank=1)
    for one in (first, second):
        one.begin(0)
        one.add([damaged(1, 3), damaged(1, 7)], samples=8)
        one.add([damaged(2, 9)], samples=16)
    records = list(read_records(tmp_path / "quarantine.jsonl"))
    assert [record["position"] for record in records] == [3, 7, 9]
    assert records[0] == {
        "step": 1,
        "position": 3,
        "key": "clip3",
        "reason": "cut",
        "substitute": "spare",
    }
    assert said[0] == "replaced clip3 by spare: cut"
    assert len(said) == 3
    for rank in (0, 1):
        again = quarantine(tmp_path, rank=rank)
        again.begin(1)
        assert again.count == 2
    assert len(list(read_records(tmp_path / "quarantine.jsonl"))) == 2


def test_more_than_the_fraction_stops_every_rank(tmp_path):
    """1 % of an epoch of 1000 clips are 10; later, 1 % of what was trained."""
    for rank in (0, 1):
        one = quarantine(tmp_path / str(rank), rank=rank)
        (tmp_path / str(rank)).mkdir()
        one.begin(0)
        one.add([damaged(1, n) for n in range(10)], samples=16)
        one.add([damaged(2, 10)], samples=1100)
        with pytest.raises(Stopped, match=r"12 clips could not be read.*max_bad_fraction=0.01"):
            one.add([damaged(3, 11)], samples=1116)


def test_a_long_epoch_is_judged_before_its_end(tmp_path):
    one = quarantine(tmp_path, epoch_clips=10_000_000)
    one.begin(0)
    one.add([damaged(1, n) for n in range(100)], samples=200)
    with pytest.raises(Stopped):
        one.add([damaged(2, 100)], samples=300)


def overwrite_clips(data: Path, count: int) -> list[str]:
    """Zero the first bytes of some training clips' MP4s; returns their keys."""
    rows = [row for row in read_index(data).table.to_pylist() if row["split"] == "train"][:count]
    for row in rows:
        with (data / row["shard"]).open("r+b") as shard:
            shard.seek(row["offset"])
            shard.write(bytes(40))
    return [row["key"] for row in rows]


def test_a_run_with_damage_finishes_counts_and_audits(shapes_dataset, run_locally, tmp_path):
    data = Path(shutil.copytree(shapes_dataset, tmp_path / "data"))
    keys = overwrite_clips(data, 3)
    steps = 40  # two epochs of the 80 clips or so
    more = (f"run.steps={steps}", "run.log_samples=true", "data.max_bad_fraction=0.2")
    often = ("run.validate_every=40", "run.checkpoint_every=40")
    run = run_locally(tmp_path, "tok", f"data.path={data}", *more, *often)
    records = list(read_records(run / "quarantine.jsonl"))
    trained = order(run)
    assert len(trained) == 4 * steps
    assert {record["key"] for record in records} == set(keys)
    expected = [r["position"] for r in trained if r["key"] in keys]
    assert [record["position"] for record in records] == expected
    assert all(("substitute" in r) == (r["key"] in keys) for r in trained)
    assert f"({len(records)} by a substitute)" in audit(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # The mean over workers of clips per worker; here of one worker.
    assert sum(line["data/substituted"] for line in lines) == len(records)


def test_too_much_damage_stops_the_run_with_the_list(shapes_dataset, run_locally, tmp_path):
    data = Path(shutil.copytree(shapes_dataset, tmp_path / "data"))
    keys = overwrite_clips(data, 6)
    with pytest.raises(CommandError, match=r"more than data\.max_bad_fraction=0\.01") as caught:
        run_locally(tmp_path, "tok", f"data.path={data}", "run.steps=40")
    assert "checksum" in str(caught.value)
    (record, *_) = read_records(tmp_path / "tok" / "quarantine.jsonl")
    assert record["key"] in keys


def test_another_data_set_is_another_run(shapes_dataset, run_locally, tmp_path):
    run_locally(tmp_path, "tok", "run.steps=2")
    data = Path(shutil.copytree(shapes_dataset, tmp_path / "data"))
    run_locally(tmp_path, "tok", f"data.path={data}", "run.steps=3")  # moved, but the same
    from hstvg.runtime.index import write_index

    write_index(data, read_index(data).table.to_pylist()[1:])
    with pytest.raises(ConfigError, match="another index of its data"):
        run_locally(tmp_path, "tok", f"data.path={data}", "run.steps=4")
