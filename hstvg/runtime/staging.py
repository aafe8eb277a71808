"""Where a data set grows: a hidden folder beside its final place, kept until the work is done.

`out` either does not exist or is complete. A run that was stopped leaves the folder, and the next
one with the same identity goes on in it.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hstvg.runtime.errors import CommandError
from hstvg.runtime.shard import TEMPORARY_SUFFIX, replace_file

IDENTITY = "identity"
LOCK = "lock"


class NothingAccepted(CommandError):
    """Every clip was refused: there is nothing to go on with."""


@contextmanager
def staging(out: Path, identity: str) -> Iterator[Path]:
    """The folder in which the data set `out` grows; gone after success.

    Raises:
        CommandError: another process is making `out` now, or the place cannot be written.
    """
    folder = out.with_name(f".{out.name}.prepare-partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / LOCK)
        _make_ready(folder, identity)
    except BlockingIOError as error:
        raise CommandError(f"another prepare is writing {out} now; wait for it") from error
    except OSError as error:
        raise CommandError(f"cannot write {out}: {error}") from error
    with lock:
        try:
            yield folder
        except NothingAccepted:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except OSError as error:
            raise CommandError(f"cannot write {out}: {error}") from error
        shutil.rmtree(folder, ignore_errors=True)


def _make_ready(folder: Path, identity: str) -> None:
    """Leave only what work with the same identity has finished."""
    known = folder / IDENTITY
    if not known.is_file() or known.read_text() != identity:
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()
        with replace_file(known) as file:
            file.write(identity.encode())
    for half in folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        half.unlink(missing_ok=True)


def _lock(path: Path) -> IO[str]:
    """An open file that no second process can have. Raises BlockingIOError if one has it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        pass  # A file system without locks: not to start twice is then the person's care.
    return file
