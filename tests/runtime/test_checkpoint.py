"""A checkpoint is whole or it is none: written at once by all, verified before it is believed."""

import json
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hstvg.runtime.checkpoint import check, checkpoint_name, newest, read_manifest, writing


@dataclass
class Ranks:
    """One of the ranks that write together; ranks are threads here."""

    rank: int = 0
    world_size: int = 1
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def barrier(self) -> None:
        self.meeting.wait(timeout=30)


def write(folder: Path, step: int, *, keep: int = 9) -> Path:
    with writing(folder, step, {"note": "fine"}, Ranks(), keep) as staging:
        (staging / "weights.bin").write_bytes(bytes([step % 256]) * 5000)
        (staging / "engine").mkdir()
        (staging / "engine" / "state.bin").write_bytes(bytes([step % 256]) * 300)
    return folder / checkpoint_name(step)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_checkpoint_holds_its_files_and_what_was_said_of_it(tmp_path):
    made = write(tmp_path, 7)
    assert newest(tmp_path) == made
    assert names(tmp_path) == {"step_000000007"}
    assert names(made) == {"weights.bin", "engine", "manifest.json"}
    manifest = read_manifest(made)
    assert (manifest["step"], manifest["world_size"], manifest["note"]) == (7, 1, "fine")
    assert set(manifest["files"]) == {"weights.bin", "engine/state.bin"}
    assert check(made) is None


def test_no_checkpoint_is_none(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "not there") is None


def test_a_checkpoint_appears_when_the_last_rank_is_done(tmp_path):
    meeting = threading.Barrier(2)
    slow = threading.Event()
    found_after: list[Path | None] = []

    def rank(number: int) -> None:
        group = Ranks(rank=number, world_size=2, meeting=meeting)
        with writing(tmp_path, 3, {}, group, keep=2) as staging:
            if number == 1:
                slow.wait(timeout=30)
            (staging / f"rank{number}.bin").write_bytes(b"x" * 100)
        found_after.append(newest(tmp_path))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    threads[0].join(timeout=0.2)  # rank 0 waits for rank 1
    assert newest(tmp_path) is None
    slow.set()
    for thread in threads:
        thread.join(timeout=30)
    made = tmp_path / "step_000000003"
    assert found_after == [made, made]
    assert set(read_manifest(made)["files"]) == {"rank0.bin", "rank1.bin"}
    assert read_manifest(made)["world_size"] == 2


# ---- retention --------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4]), (0, [4])])
def test_the_newest_few_are_kept(tmp_path, keep, kept):
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=keep)
    assert names(tmp_path) == {checkpoint_name(step) for step in kept}


def test_what_was_set_aside_does_not_count_as_kept(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / "step_000000003" / "weights.bin").unlink()
    assert newest(tmp_path) == tmp_path / "step_000000002"
    write(tmp_path, 4, keep=2)
    assert names(tmp_path) == {"step_000000002", "step_000000003.corrupt", "step_000000004"}


# ---- a write that is killed -------------------------------------------------------------------


def kill_while_writing(folder: Path, step: int) -> None:
    with suppress(KeyboardInterrupt), writing(folder, step, {}, Ranks(), keep=2) as staging:
        (staging / "weights.bin").write_bytes(b"half")
        raise KeyboardInterrupt


def test_a_killed_write_leaves_the_checkpoint_before(tmp_path):
    before = write(tmp_path, 1)
    kill_while_writing(tmp_path, 2)
    assert newest(tmp_path) == before
    assert check(before) is None


def test_the_same_step_can_be_written_after_a_kill(tmp_path):
    kill_while_writing(tmp_path, 2)
    (tmp_path / ".step_000000002.partial" / "stale.bin").write_bytes(b"old")
    made = write(tmp_path, 2)
    assert newest(tmp_path) == made
    assert "stale.bin" not in names(made)
    assert names(tmp_path) == {made.name}


def test_a_kill_just_before_the_rename_leaves_no_checkpoint(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "step_000000002").rename(tmp_path / ".step_000000002.partial")
    assert newest(tmp_path) == tmp_path / "step_000000001"


def test_the_next_checkpoint_clears_leftovers_of_any_step(tmp_path):
    kill_while_writing(tmp_path, 2)
    write(tmp_path, 5)
    assert names(tmp_path) == {"step_000000005"}


# ---- storage that lies ------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": lambda made: flip(made / "weights.bin"),
    "a flipped bit in a subfolder": lambda made: flip(made / "engine" / "state.bin"),
    "a truncated file": lambda made: (made / "weights.bin").write_bytes(b""),
    "a missing file": lambda made: (made / "engine" / "state.bin").unlink(),
    "a missing manifest": lambda made: (made / "manifest.json").unlink(),
    "an empty manifest": lambda made: (made / "manifest.json").write_bytes(b""),
    "a torn manifest": lambda made: (made / "manifest.json").write_bytes(
        (made / "manifest.json").read_bytes()[:80]
    ),
    "a manifest of zeros": lambda made: (made / "manifest.json").write_bytes(bytes(200)),
    "a manifest of nothing": lambda made: (made / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, damage, capsys):
    before, made = write(tmp_path, 1), write(tmp_path, 2)
    DAMAGES[damage](made)
    assert check(made) is not None
    assert newest(tmp_path) == before
    # Set aside, not deleted: a person may want to look.
    assert names(tmp_path) == {"step_000000001", "step_000000002.corrupt"}
    said = capsys.readouterr().err
    assert "step_000000002 set aside" in said
    assert len(said.splitlines()) == 1
    assert newest(tmp_path) == before


def test_every_damaged_checkpoint_is_walked_past(tmp_path):
    for step in (1, 2, 3):
        flip(write(tmp_path, step) / "weights.bin")
    assert newest(tmp_path) is None
    assert names(tmp_path) == {f"{checkpoint_name(step)}.corrupt" for step in (1, 2, 3)}


def test_a_step_that_was_damaged_twice_is_set_aside_twice(tmp_path):
    before = write(tmp_path, 1)
    for _ in range(2):
        flip(write(tmp_path, 2) / "weights.bin")
        assert newest(tmp_path) == before
    assert newest(tmp_path) == before
    write(tmp_path, 2)
    assert newest(tmp_path) == tmp_path / "step_000000002"


def test_a_copied_checkpoint_is_still_whole(tmp_path):
    made = write(tmp_path / "here", 1)
    shutil.copytree(made, tmp_path / "there" / made.name)
    assert check(tmp_path / "there" / made.name) is None
    assert json.loads((made / "manifest.json").read_text())["format"] == 2
