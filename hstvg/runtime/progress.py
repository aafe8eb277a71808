"""How far long work has come: a bar on a terminal, elsewhere a line per twentieth of the parts."""

import sys
import time
from collections.abc import Mapping
from typing import Any


class Progress:
    """Counts parts and items; speaks on stderr.

    Args:
        name: what the parts are called.
        num_parts: in all.
        num_items: in all parts.
    """

    def __init__(self, name: str, *, num_parts: int, num_items: int) -> None:
        self.name = name
        self.num_parts = num_parts
        self.num_items = num_items
        self.parts = self.items = self.refused = self.taken_over = 0
        self.start = time.monotonic()

    def take_over(self, num_parts: int, num_items: int) -> None:
        """Count what an earlier run has done."""
        self.parts, self.items = num_parts, num_items
        self.taken_over = num_items
        self._print(f"continuing: {num_parts} of {self.num_parts} {self.name} are there\n")

    def advance(self, num_items: int, result: Mapping[str, Any]) -> None:
        """Count one part more and the entries `rejected` of its result."""
        self.parts += 1
        self.items += num_items
        self.refused += len(result.get("rejected", ()))
        last = self.parts == self.num_parts
        if self.num_parts == 1:
            return  # One step is no progress to speak of.
        if sys.stderr.isatty():
            filled = 30 * self.items // max(1, self.num_items)
            bar = "#" * filled + "." * (30 - filled)
            self._print(f"\r[{bar}] {self._line()}" + "\n" * last)
        elif last or self.parts % max(1, self.num_parts // 20) == 0:
            self._print(f"{self._line()}\n")

    def _line(self) -> str:
        passed_s = max(time.monotonic() - self.start, 1e-6)
        rate = (self.items - self.taken_over) / passed_s
        left_s = (self.num_items - self.items) / rate if rate else 0.0
        return (
            f"{self.name} {self.parts}/{self.num_parts}  item {self.items}/{self.num_items}  "
            f"refused {self.refused}  {rate:.0f} items/s  {left_s:.0f} s left "
        )

    def _print(self, text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)
