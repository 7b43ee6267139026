"""What the command prints on stderr while it works."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import TracebackType

import numpy as np
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vgjax.command.printing import layer_rms

SPEED_PERIOD = 3600.0  # seconds over which the speed is averaged for the time left


@contextlib.contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Give a function that shows a text on stderr while the work goes on; without a terminal it shows nothing."""
    with Console(stderr=True).status("") as status:
        yield status.update


class ProgressBar:
    """A bar on stderr with loss, accuracy, first-layer RMS and the time left; without a terminal, one line at the end.

    Use it as a context manager, and give its `update` to `vgjax.run` as `progress`.
    """

    def __init__(self) -> None:
        self._bar = Progress(
            BarColumn(bar_width=10),  # so that a line fits into 80 columns
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            speed_estimate_period=SPEED_PERIOD,
        )
        self._task = self._bar.add_task("compiling", total=None)
        self._rms = ""
        self._last = ""

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.stop()
        if self._bar.disable and self._last and kind is None:
            print(self._last, file=sys.stderr)

    def update(self, part: xr.Dataset, total: int, done: int | None = None, prefix: str = "") -> None:
        """Show the numbers of a chunk.

        Args:
          part: the chunk's history.
          total: steps of the whole run.
          done: how many of them are done; None: as many as the part says.
          prefix: text before the numbers.
        """
        if part.sizes["record"] and "gradient_log10_rms" in part:
            self._rms = f"first-layer RMS {layer_rms(part, -1)[0]:.2g}"
        loss, accuracy = (float(part[name].mean()) for name in ("train_loss", "validation_accuracy"))
        unit = "step" if done is None else "lane step"
        done = int(part["evaluated_at"].values[-1]) if done is None else done
        shown_accuracy = "" if np.isnan(accuracy) else f"accuracy {accuracy:.3f}  "
        numbers = f"{prefix}loss {loss:.3g}  {shown_accuracy}{self._rms}"
        self._bar.update(self._task, completed=done, total=total, description=numbers)
        self._last = f"{unit} {done} of {total}  {numbers}"
