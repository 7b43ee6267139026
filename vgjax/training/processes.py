"""One job over several processes and machines: how a process joins the others, and how it leaves them.

JAX's coordination service runs in process 0. A process whose peer is gone learns it in one of two ways: a collective
fails (a Python exception), or that service tells it so, upon which JAX's C++ prints at length and aborts. Both end
here in one line.
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

PATIENCE = 30  # seconds without a sign of life after which a process counts as lost
LOST = "another process of this job is gone; go on from the last checkpoint with --resume"
LOSS = re.compile(r"[A-Z_]+: .*(Gloo|NCCL)|(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): ")  # how XLA's messages begin
ALLOWED = "allowed: nothing more under Slurm, Open MPI, Kubernetes or on a Cloud TPU; else HOST:PORT COUNT INDEX"


@contextlib.contextmanager
def joined(where: Sequence[str] | None) -> Iterator[None]:
    """Be one process of a job: `jax.devices()` are those of all. To be entered before any device is used.

    Args:
      where: process 0's HOST:PORT, the COUNT of processes, this one's INDEX; empty: as the cluster says; None: alone.

    Raises:
      ValueError: no address of that form, no cluster found, or processes with unequal numbers of devices.
      ConnectionError: the others were not found, or one of them is gone.
    """
    if where is None:
        yield
        return
    address, count, index = _address(where)
    _keep_streams()
    jax.config.update(
        "jax_enable_preemption_service", False
    )  # which would take SIGTERM away from vgjax.command.stopping
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
        jax.distributed.shutdown()  # together
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
    """Leave after a failure: with the others, where they fail as well and soon; else at once, so that they notice."""
    _leaving.set()
    if together:
        parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        parting.start()
        parting.join(PATIENCE)
        if not parting.is_alive():
            return
    atexit.register(os._exit, 1)  # JAX's own way out would wait for those who are gone


def _keep_streams() -> None:
    """Keep stdout and stderr to Python: what C++ writes is shown only where it aborts, and not for a lost process.

    Gloo greets on stdout, and the coordination service prints a page of C++ when a process is lost.
    """
    written = tempfile.TemporaryFile()  # noqa: SIM115  (until the end)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        stream.flush()
        kept = os.fdopen(os.dup(number), "w", buffering=1, encoding=stream.encoding, errors=stream.errors)
        setattr(sys, name, kept)
        os.dup2(written.fileno(), number)

    def aborted(_: int) -> None:
        if _leaving.is_set():
            time.sleep(PATIENCE)  # the main thread says its line, and ends the process
        said = os.pread(written.fileno(), 2**20, 0).decode(errors="replace")
        print(f"vgjax: {LOST}" if "JAX distributed service detected" in said else said, file=sys.stderr, flush=True)
        os._exit(1)

    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])  # Python's own handlers run too late


_handlers: list[Callable[[int], None]] = []  # those that C knows
