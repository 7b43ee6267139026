"""Stopping: of a run, the first SIGINT or SIGTERM lets the running chunk land and the second stops at once.

A thread of its own hears the signals. The main thread may be in C code for as long as a program compiles or a chunk
takes; only afterwards would it be told, and of two signals as of one.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = "\x1b[?25h\n"  # which a bar hides


def exit_status(number: int) -> int:
    """The exit status of a process that a signal ended."""
    return 128 + number


@contextmanager
def stop_at_once(say: Callable[[], str] = lambda: "stopped") -> Iterator[None]:
    """Let a signal end the process, with one line and no traceback.

    Args:
      say: gives the line.
    """
    with _heard(partial(_end, say)):
        yield


@contextmanager
def stop_after_chunk(say: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Give a function to be called after every chunk; it raises KeyboardInterrupt(signal) once a stop was asked for.

    Args:
      say: gives the line with which a second signal ends the process.
    """
    asked: list[int] = []

    def hear(number: int) -> None:
        asked.append(number)
        if len(asked) > 1:
            _end(say, number)
        if sys.stderr.isatty():
            print("stopping after this chunk; once more stops at once", file=sys.stderr)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt(asked[0])

    with _heard(hear):
        yield check


@contextmanager
def _heard(by: Callable[[int], None]) -> Iterator[None]:
    """Call `by` with every signal, in a thread."""
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)

    def listen() -> None:
        while heard := ear.recv(1):
            if heard[0] in SIGNALS:
                by(heard[0])

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    told_before = signal.set_wakeup_fd(mouth.fileno())
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(told_before)
        mouth.close()
        thread.join()
        ear.close()


def _end(say: Callable[[], str], number: int) -> None:
    """Nothing is tidied up: a folder bears this as it bears a kill, and what is in C code cannot be left otherwise."""
    try:
        stream = sys.__stderr__ if isinstance(sys.stderr, io.StringIO) else sys.stderr
        if stream:
            print(SHOW_CURSOR * stream.isatty() + say(), file=stream, flush=True)
    finally:
        os._exit(exit_status(number))


@contextlib.contextmanager
def saying_how_to_go_on(advice: Callable[[], str], file: Path) -> Iterator[None]:
    """Say with an interruption how to go on, and with what the disk refuses too, once that file is there."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(advice(), *stop.args) from None
    except OSError as error:
        if error.strerror and file.exists():
            error.strerror += f"; {advice()}"
        raise


def options_as_typed(command: Any, *options: str) -> list[str]:
    """Those of the options that were given, and the processes, as they are typed."""
    given = {name: value for name in options if (value := getattr(command, name)) != getattr(type(command), name)}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return words if command.distributed is None else [*words, "--distributed", *command.distributed]
