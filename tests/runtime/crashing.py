"""Sources whose items kill the worker that works on them."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from hstvg.runtime.shard import Sample
from hstvg.runtime.source import Item, ShapeSource
from hstvg.runtime.source_webdataset import WebDatasetSource


@dataclass(frozen=True, kw_only=True)
class KillerSource:
    """Shape clips, some of which end the process that renders them; others raise."""

    num_clips: int
    killers: tuple[int, ...] = ()
    bugs: tuple[int, ...] = ()
    asked: bool = False
    """Whether the killers strike when a question is put to them, not when clips are made."""

    def items(self) -> list[Item]:
        return [{**item, "n": n} for n, item in enumerate(self.shapes.items())]

    def outlook(self, items, clips_per_shard) -> str:
        return f"{len(items)} clips"

    def settle(self, items, ask) -> list[Item]:
        if not self.asked:
            return list(items)
        answers = ask("question", self.question, items)
        return [
            item if answer == item["n"] else {**item, "refusal": str(answer)}
            for item, answer in zip(items, answers, strict=True)
        ]

    def samples(self, item) -> Iterator[Sample]:
        if not self.asked:
            self.question(item)
        yield self.shapes.sample(item)

    def question(self, item) -> int:
        if item["n"] in self.killers:
            os.kill(os.getpid(), signal.SIGKILL)
        if item["n"] in self.bugs:
            raise ZeroDivisionError("of clip\nand more")
        return item["n"]

    @property
    def shapes(self) -> ShapeSource:
        return ShapeSource(num_clips=self.num_clips)


@dataclass(frozen=True, kw_only=True)
class KillerShards:
    """Shards that are indexed where they lie; one sample ends the process that looks at it."""

    shards: WebDatasetSource
    killer: str

    def items(self) -> list[Item]:
        return self.shards.items()

    def outlook(self, items, clips_per_shard) -> str:
        return self.shards.outlook(items, clips_per_shard)

    def settle(self, items, ask) -> list[Item]:
        return self.shards.settle(items, ask)

    def samples(self, item):
        if item["key"] == self.killer:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from self.shards.samples(item)
