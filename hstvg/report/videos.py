"""Videos inside the page: as data URIs while they fit, as relative links after that."""

import base64
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

BUDGET_BYTES = 5_000_000
"""Of base64 text in one page; mail and code-review tools refuse much larger attachments."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video as the template shows it: exactly one of `uri`, `link` and `missing` is set."""

    label: str
    """What is seen, for whoever cannot see it."""
    uri: str = ""
    link: str = ""
    """Relative to the page."""
    missing: str = ""
    """Name of a file that is not there."""


class Shelf:
    """Embeds the videos of one page, first come first served, until the budget is spent."""

    def __init__(self, page_dir: Path, budget_bytes: int = BUDGET_BYTES) -> None:
        self._root = page_dir.resolve()
        self._left = budget_bytes

    def video(self, path: Path, label: str) -> Video:
        """The MP4 at `path`; only files below the page's folder are ever read."""
        resolved = path.resolve()
        if not resolved.is_relative_to(self._root) or not resolved.is_file():
            return Video(label=label, missing=path.name)
        size = 4 * -(-resolved.stat().st_size // 3)
        if size > self._left:
            return Video(label=label, link=quote(resolved.relative_to(self._root).as_posix()))
        self._left -= size
        encoded = base64.b64encode(resolved.read_bytes()).decode("ascii")
        return Video(label=label, uri=f"data:video/mp4;base64,{encoded}")
