"""Processes of the command that need not import JAX and TensorFlow first: each is a fork of one that has.

Everything else of them is real: own memory, own files, own signals, own death. A start takes .1 s in place of 5 to 15.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = [
    *("jax", "flax.linen", "optax", "orbax.checkpoint", "xarray", "netCDF4", "pandas", "sklearn.datasets", "yaml"),
    *("tyro", "rich.progress", "scipy.stats", "matplotlib.pyplot", "clu.metric_writers", "vgjax.command.cli"),
    *("vgjax.training.loop", "vgjax.sweeps.sweep", "vgjax.analysis", "vgjax.figures", "vgjax.sweeps.map_figures"),
    *("vgjax.command.printing", "vgjax.command.progress"),
]
COMMAND = "from vgjax.__main__ import main; main()"


class Fork:
    """A process that runs a program; its methods are those of `subprocess.Popen`.

    Args:
      words: the command line after the program's name.
      cwd: where it stands.
      env: its environment; JAX's variables are handed to `jax.config`, which reads them at import only.
      program: Python code; by default the command `vgjax`.
    """

    def __init__(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], program: str = COMMAND):
        self._said = [_new_file() for _ in range(2)]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        arguments = (program, [*map(str, words)], str(cwd), dict(env), [str(path) for path in self._said])
        self._process = context.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; −n: ended by signal n."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """If it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """At once."""
        self.send_signal(signal.SIGKILL)

    def errors(self) -> str:
        """What it has said on stderr so far."""
        return self._said[1].read_text(errors="replace") if self._said[1].exists() else ""

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end: stdout and stderr."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        said = [path.read_text(errors="replace") if path.exists() else "" for path in self._said]
        for path in self._said:
            path.unlink(missing_ok=True)
        return said[0], said[1]


def _new_file() -> Path:
    descriptor, path = tempfile.mkstemp(prefix="vgjax-test-")
    os.close(descriptor)
    return Path(path)


def _run(program: str, words: list[str], cwd: str, environment: dict[str, str], said: list[str]) -> None:
    for descriptor, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["vgjax", *words]
    import jax

    for name, value in environment.items():
        if name.startswith("JAX_") and hasattr(jax.config, name.lower()):
            kind = type(getattr(jax.config, name.lower()))
            of_text = {bool: lambda text: text.lower() in ("1", "true"), int: int, float: float}
            jax.config.update(name.lower(), of_text.get(kind, str)(value))
    exec(program, {"__name__": "__main__"})
