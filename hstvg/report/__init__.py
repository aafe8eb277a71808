"""One self-contained HTML page from a run folder: what came out, how good, how to do it again."""

from hstvg.report.page import write_report

__all__ = ["write_report"]
