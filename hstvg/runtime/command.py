"""What every pipeline does around its work: read argv, say what failed, choose the exit code."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
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
        with _ctrl_c_outlives_translation():
            main(compose(pipeline, argv))
    except KeyboardInterrupt:
        return _say(Interrupted("interrupted; run the same command again to go on"))
    except CommandError as error:
        if os.environ.get("HSTVG_TRACEBACK"):
            raise
        return _say(error)
    return 0


@contextmanager
def _ctrl_c_outlives_translation() -> Iterator[None]:
    """Whatever error leaves this after Ctrl-C, it leaves as KeyboardInterrupt.

    Compiled code that was calling Python when it came may raise an error of its own instead: torch
    finds that a storage, which safetensors reads, has no shape.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # a shell's background job ignores Ctrl-C
        return
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, press)
    try:
        yield
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _say(error: CommandError) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_code
