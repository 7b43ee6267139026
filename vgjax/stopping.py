"""Stopping in order: the first SIGINT or SIGTERM lets the running chunk land, the second stops at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_after_chunk() -> Iterator[Callable[[], None]]:
    """Give a function to be called after every chunk; it raises KeyboardInterrupt once a stop was asked for.

    An exception raised by the signal itself could strike in a callback of C code, and be swallowed there.
    """
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        if sys.stderr.isatty():
            print("stopping after this chunk; once more stops at once", file=sys.stderr)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
