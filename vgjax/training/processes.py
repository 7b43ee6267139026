"""One job over several processes and machines: how a process joins the others, and how it leaves them.

JAX's coordination service runs in process 0. When a process is lost, the others notice it in one of two ways: a
collective operation fails (a Python exception), or the coordination service tells them, and then JAX's C++ code prints
a page and aborts. This module turns both into one line.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import jax

PATIENCE = 30  # seconds without a heartbeat after which a process counts as lost
LOST = "another process of this job is gone; go on from the last checkpoint with --resume"
# how XLA's messages begin when another process is lost
LOSS = re.compile(r"[A-Z_]+: .*(Gloo|NCCL)|(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): ")
ALLOWED = "allowed: nothing more under Slurm, Open MPI, Kubernetes or on a Cloud TPU; else HOST:PORT COUNT INDEX"


@contextlib.contextmanager
def joined(where: Sequence[str] | None) -> Iterator[None]:
    """Join a job as one of its processes; `jax.devices()` then gives the devices of all of them.

    Enter this before any device is used.

    Args:
      where: HOST:PORT of process 0, the COUNT of processes, the INDEX of this one; empty: ask the cluster's scheduler;
        None: this process has no others.

    Raises:
      ValueError: an address of another form, no cluster found, or processes with unequal numbers of devices.
      ConnectionError: the other processes were not found, or one of them is lost.
    """
    if where is None:
        yield
        return
    address, count, index = _address(where)
    _hide_messages_of_cpp()
    # the preemption service would handle SIGTERM, which vgjax.command.stopping handles
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address, count, index, initialization_timeout=4 * PATIENCE, heartbeat_timeout_seconds=PATIENCE
        )
    except ValueError:
        raise ValueError(f"--distributed: no cluster found; {ALLOWED}") from None
    except RuntimeError as error:
        raise ConnectionError(f"--distributed: {_first_line(error)}") from None
    try:
        counts = set(Counter(device.process_index for device in jax.devices()).values())
        if len(counts) > 1:
            raise ValueError(f"processes have {sorted(counts)} devices; allowed: as many each")
        yield
        jax.distributed.shutdown()  # waits for the other processes
    except BaseException as error:
        lost = bool(LOSS.match(str(error)))
        _leave(together=not lost)
        if lost:
            raise ConnectionError(f"{LOST} ({_first_line(error)})") from None
        raise


def _address(where: Sequence[str]) -> tuple[str, int, int] | tuple[None, None, None]:
    if not where:
        return None, None, None
    try:
        host_and_port, count, index = where[0], *map(int, where[1:])
        host, port = host_and_port.rsplit(":", 1)
        if host and 0 < int(port) < 2**16 and 0 <= index < count:
            return host_and_port, count, index
    except ValueError:
        pass
    raise ValueError(f"--distributed {' '.join(where)}: not an address; {ALLOWED}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


_leaving = threading.Event()


def _leave(together: bool) -> None:
    """Leave the job after a failure.

    Args:
      together: first wait, for at most PATIENCE seconds, for the others to fail as well; otherwise leave at once, so
        that the others notice it.
    """
    _leaving.set()
    if together:
        parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        parting.start()
        parting.join(PATIENCE)
        if not parting.is_alive():
            return
    atexit.register(os._exit, 1)  # JAX's own exit handler would wait for the lost processes


def _hide_messages_of_cpp() -> None:
    """Send what C++ prints to a file, and show it only if C++ aborts for another reason than a lost process.

    Gloo prints a greeting on stdout, and the coordination service prints a page when a process is lost. Python keeps
    writing to the real stdout and stderr.

    The abort needs a handler that C calls: Python runs its own handlers in the main thread, between two instructions,
    and the process has ended by then. This can go when `jax.distributed` raises an exception instead of aborting.
    """
    written = tempfile.TemporaryFile()  # noqa: SIM115  (open until the process ends)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        stream.flush()
        kept = os.fdopen(os.dup(number), "w", buffering=1, encoding=stream.encoding, errors=stream.errors)
        setattr(sys, name, kept)
        os.dup2(written.fileno(), number)

    def on_abort(_: int) -> None:
        if _leaving.is_set():
            time.sleep(PATIENCE)  # the main thread is printing its own line, and will end the process
        text = os.pread(written.fileno(), 2**20, 0).decode(errors="replace")
        print(f"vgjax: {LOST}" if "JAX distributed service detected" in text else text, file=sys.stderr, flush=True)
        os._exit(1)

    _handlers_of_c.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers_of_c[-1])


_handlers_of_c: list[Callable[[int], None]] = []  # kept, or Python would free what C still calls
