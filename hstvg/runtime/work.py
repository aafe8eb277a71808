"""Work in parts on Ray: the result of each part is kept on disk, and a crash costs one item.

Whoever does the same work again takes over the parts that are done. A worker that dies (a decoder's
crash, the kernel's hand on a process out of memory) loses no part: its items are tried one by one,
and the part is done again without the one that kills.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hstvg.runtime.errors import CommandError
from hstvg.runtime.progress import Progress
from hstvg.runtime.shard import replace_file
from hstvg.runtime.source import Item, one_line

CRASHED = "crashed the decoder: a worker died of it twice"
MOST_DEATHS = 3
"""Of the workers of one part, before somebody has to look at the machine."""

Result = dict[str, Any]
"""Plain JSON."""


@runtime_checkable
class Job(Protocol):
    """What to do with items."""

    @property
    def name(self) -> str:
        """What a person reads beside the progress."""
        ...

    def run(self, number: int, items: Sequence[Item]) -> Result:
        """Do part `number`. An item with a `refusal` counts as refused."""
        ...

    def attempt(self, item: Item) -> None:
        """What `run` does with one item, to see whether the worker survives it."""
        ...

    def holds(self, result: Result) -> bool:
        """Whether what an earlier run made is still there."""
        ...


def work(job: Job, parts: Sequence[Sequence[Item]], records: Path) -> list[Result]:
    """The result of every part, in order, done by Ray tasks or taken over from `records`.

    Raises:
        CommandError: the disk failed, or workers die whatever the items.
    """
    records.mkdir(parents=True, exist_ok=True)
    paths = [records / f"{n:06d}-{_digest(part)}.json" for n, part in enumerate(parts)]
    kept = {n: result for n, path in enumerate(paths) if (result := _read(job, path)) is not None}
    progress = Progress(job.name, num_parts=len(parts), num_items=sum(map(len, parts)))
    if kept:
        progress.take_over(len(kept), sum(len(parts[n]) for n in kept))
    if len(kept) < len(parts):
        kept |= _Crew(job, parts, paths, progress).work(set(range(len(parts))) - kept.keys())
    return [kept[number] for number in range(len(parts))]


class _Crew:
    """The Ray tasks of one job."""

    def __init__(
        self,
        job: Job,
        parts: Sequence[Sequence[Item]],
        paths: Sequence[Path],
        progress: Progress,
    ) -> None:
        import ray

        self.parts: dict[int, Sequence[Item]] = dict(enumerate(parts))
        self.paths = paths
        self.progress = progress
        self.held = ray.put(job)
        # Ray's own retries would meet the same item again, without end where memory runs out.
        self.do = ray.remote(max_retries=0)(_do)
        self.attempt = ray.remote(max_retries=0)(_attempt)
        # Enough tasks to keep every CPU busy; the rest waits here and not in Ray's memory.
        self.most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.running: dict[Any, int] = {}
        self.deaths: Counter[int] = Counter()

    def work(self, numbers: set[int]) -> dict[int, Result]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        done: dict[int, Result] = {}
        waiting = iter(sorted(numbers))
        try:
            while len(done) < len(numbers):
                for number in islice(waiting, self.most - len(self.running)):
                    self._start(number)
                (ready,), _ = ray.wait(list(self.running))
                number = self.running.pop(ready)
                try:
                    done[number] = ray.get(ready)
                except _deadly() as error:
                    self._recover(number, error)
                else:
                    self.progress.advance(len(self.parts[number]), done[number])
        except RayTaskError as error:
            if not isinstance(error.cause, OSError):
                raise
            raise CommandError(f"cannot write: {error.cause}{_AGAIN}") from error
        except RayError as error:
            raise CommandError(f"a worker was lost ({one_line(error)}){_AGAIN}") from error
        finally:
            _cancel(list(self.running))
        return done

    def _start(self, number: int) -> None:
        part, path = self.parts[number], self.paths[number]
        self.running[self.do.remote(self.held, number, part, path)] = number

    def _recover(self, number: int, error: Exception) -> None:
        """Start a part again whose worker died, without the items that it died of."""
        self.deaths[number] += 1
        if self.deaths[number] > MOST_DEATHS:
            times = f"{self.deaths[number]} times on part {number} of the {self.progress.name}"
            raise CommandError(f"a worker died {times} ({one_line(error)}){_AGAIN}") from error
        self.parts[number] = self._without_killers(self.parts[number])
        self._start(number)

    def _without_killers(self, items: Sequence[Item]) -> list[Item]:
        suspects = [place for place, item in enumerate(items) if "refusal" not in item]
        tasks = {n: self.attempt.remote(self.held, items[n]) for n in suspects}
        dead = [n for n, task in tasks.items() if _dies(task)]
        # Once more, and now alone: another's hunger for memory must not be held against it.
        killers = {n for n in dead if _dies(self.attempt.remote(self.held, items[n]))}
        return [
            {**item, "refusal": CRASHED} if place in killers else item
            for place, item in enumerate(items)
        ]


_AGAIN = "; run the same command again to go on from here"


def _do(job: Job, number: int, items: Sequence[Item], path: Path) -> Result:
    result = job.run(number, items)
    with replace_file(path) as file:
        file.write(json.dumps(result).encode())
    return result


def _attempt(job: Job, item: Item) -> None:
    job.attempt(item)


def _deadly() -> tuple[type[Exception], ...]:
    """How the death of a worker looks from here."""
    from ray.exceptions import (
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        WorkerCrashedError,
    )

    # A result is lost when the node dies that holds it.
    return (NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)


def _dies(task: Any) -> bool:
    import ray
    from ray.exceptions import RayTaskError

    try:
        ray.get(task)
    except _deadly():
        return True
    except RayTaskError:
        pass  # An error, not a death: the part itself will meet it and say so.
    return False


def _cancel(tasks: Sequence[Any]) -> None:
    """End tasks that nobody waits for any more, before the folder they write in goes."""
    import ray

    for task in tasks:
        with suppress(Exception):
            ray.cancel(task, force=True)
    for task in tasks:
        with suppress(Exception):
            ray.get(task, timeout=10)


def _digest(part: Sequence[Item]) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]


def _read(job: Job, path: Path) -> Result | None:
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return result if job.holds(result) else None


def counts(rejected: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Kind of reason -> how many were refused for it, the most frequent first."""
    return dict(Counter(entry["reason"].split(":")[0] for entry in rejected).most_common())
