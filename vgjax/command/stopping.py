"""What the command does on Ctrl-C (SIGINT) and SIGTERM.

During a run, the first signal stops it after the chunk that is running, and the second ends the process at once.
Everything else ends at once.
"""

from __future__ import annotations

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
SHOW_CURSOR = "\x1b[?25h\n"  # a progress bar hides the cursor


def exit_status(number: int) -> int:
    """The exit status of a process that this signal ended."""
    return 128 + number


@contextmanager
def stop_at_once(message: Callable[[], str] = lambda: "stopped") -> Iterator[None]:
    """Let a signal end the process, with one line and no traceback.

    Args:
      message: gives the line.
    """
    with _handled_in_a_thread(partial(_end_process, message)):
        yield


@contextmanager
def stop_after_chunk(message: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Give a function to call after every chunk: it raises KeyboardInterrupt(signal number) after a first signal.

    Args:
      message: gives the line that is printed when a second signal ends the process.
    """
    received: list[int] = []

    def handle(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            _end_process(message, number)
        if sys.stderr.isatty():
            print("stopping after this chunk; once more stops at once", file=sys.stderr)

    def check() -> None:
        if received:
            raise KeyboardInterrupt(received[0])

    with _handled_in_a_thread(handle):
        yield check


@contextmanager
def _handled_in_a_thread(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(number)` in a thread for every signal.

    Why not a plain handler: Python runs handlers in the main thread, between two bytecodes. While XLA compiles or runs
    a chunk, the main thread is in C code, so a handler waits, and two signals arrive as one. `set_wakeup_fd` makes
    CPython's C handler write the number of each signal to a socket at once. Gain: a second signal during a chunk ended
    the process after 1.0 s, with plain handlers after 2.2 s, when the chunk was done; longer chunks gain more. It can
    go when JAX checks for signals while it works.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def listen() -> None:
        while data := receiver.recv(1):
            if data[0] in SIGNALS:
                handle(data[0])

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    previous_fd = signal.set_wakeup_fd(sender.fileno())
    previous_handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        sender.close()
        thread.join()
        receiver.close()


def _end_process(message: Callable[[], str], number: int) -> None:
    """Print the message and end the process without cleaning up.

    `os._exit`, because the main thread may be in C code, which no exception can leave. The files of a run are safe:
    each is written whole or not at all.
    """
    try:
        # While tyro parses, sys.stderr is a StringIO (vgjax.command.cli.parse).
        stream = sys.__stderr__ if isinstance(sys.stderr, io.StringIO) else sys.stderr
        if stream:
            print(SHOW_CURSOR * stream.isatty() + message(), file=stream, flush=True)
    finally:
        os._exit(exit_status(number))


@contextmanager
def add_advice(advice: Callable[[], str], file: Path) -> Iterator[None]:
    """Add to an interruption how to go on; to an error of the disk too, if the run can go on because `file` exists."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(advice(), *stop.args) from None
    except OSError as error:
        if error.strerror and file.exists():
            error.strerror += f"; {advice()}"
        raise


def changed_options(command: Any, *names: str) -> list[str]:
    """Of these options and --distributed, those that differ from their defaults, as words of a command line."""
    changed = {name: value for name in names if (value := getattr(command, name)) != getattr(type(command), name)}
    words = [word for name, value in changed.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return words if command.distributed is None else [*words, "--distributed", *command.distributed]
