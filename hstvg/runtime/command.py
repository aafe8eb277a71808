"""What every pipeline does around its work: read argv, say what failed, choose the exit code."""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hstvg.runtime.errors import CommandError, Interrupted


def run_command(pipeline: str, doc: str | None, main: Callable[[dict[str, Any]], None]) -> NoReturn:
    """Compose the pipeline's config from argv, run it, and exit as DESIGN's contract says."""
    sys.exit(_exit_code(pipeline, doc, main, sys.argv[1:]))


def _exit_code(
    pipeline: str, doc: str | None, main: Callable[[dict[str, Any]], None], argv: list[str]
) -> int:
    from hstvg.runtime.config import compose, show

    if {"-h", "--help"} & set(argv):
        print(
            f"{(doc or '').strip()}\n\nKeys and defaults (??? must be given):\n\n{show(pipeline)}",
            end="",
        )
        return 0
    try:
        main(compose(pipeline, argv))
    except KeyboardInterrupt:
        return _say(Interrupted("interrupted; run the same command again to go on"))
    except CommandError as error:
        if os.environ.get("HSTVG_TRACEBACK"):
            raise
        return _say(error)
    return 0


def _say(error: CommandError) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_code
