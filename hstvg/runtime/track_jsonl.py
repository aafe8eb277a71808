"""metrics.jsonl: the source of truth of a run, one line per step, without gap or repetition."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from hstvg.train.ports import Tracker


class JsonlTracker:
    """Appends a line per step; of a resumed run, drops the lines its checkpoint does not know.

    Args:
        run_dir: the run folder.
        mirror: a second tracker that is told the same, or None. What goes wrong with it never stops
            the run.
    """

    def __init__(self, run_dir: Path, *, mirror: Tracker | None = None) -> None:
        self.run_dir = run_dir
        self.file = run_dir / "metrics.jsonl"
        self.mirror = mirror
        self.stream: IO[str] | None = None

    def begin(self, step: int) -> None:
        _cut(self.file, step)
        self.stream = self.file.open("a", buffering=1)
        self._tell("begin", step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        assert self.stream is not None, "begin() opens the file"
        self.stream.write(json.dumps({"step": step, **values}) + "\n")
        self._tell("scalars", step, values)

    def video(self, step: int, name: str, file: Path) -> None:
        folder = self.run_dir / "samples"
        folder.mkdir(exist_ok=True)
        target = folder / f"{name}{file.suffix}"
        shutil.copyfile(file, target)
        if (prompt := file.with_suffix(".txt")).exists():
            shutil.copyfile(prompt, target.with_suffix(".txt"))
        self._tell("video", step, name, target)

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self._tell("close")

    def _tell(self, what: str, *arguments: Any) -> None:
        """Pass it on; after its first fault the mirror is let go."""
        if self.mirror is None:
            return
        try:
            getattr(self.mirror, what)(*arguments)
        except Exception as error:
            print(f"{type(self.mirror).__name__} off: {error}", file=sys.stderr, flush=True)
            broken, self.mirror = self.mirror, None
            with suppress(Exception):
                broken.close()


class SilentTracker:
    """What ranks other than 0 track with."""

    def begin(self, step: int) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def video(self, step: int, name: str, file: Path) -> None: ...

    def close(self) -> None: ...


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The lines of a metrics file; a last line torn by a kill is left out."""
    lines = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _cut(file: Path, done: int) -> None:
    kept = [line for line in read_metrics(file) if line["step"] <= done]
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(partial, file)
