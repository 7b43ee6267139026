"""TensorBoard events and the log of a run, written from its history by CLU's metric writers.

TensorFlow is imported with the first writer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from vgjax.files import named
from vgjax.statistics.histograms import histogram_metadata, tensorboard_histogram

Which = Literal["all", "first", "none"]

# TensorBoard sorts groups of charts by name and opens the first two. These two shall be the first, with ten charts at
# most, so their names sort before those of all families of statistics ("activation", …).
FIRST_PAGE = {
    "accuracy_and_loss": (
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "loss",
        "accuracy",
    ),
    "across_layers": ("gradient_log10_rms", "gradient_zero_fraction", "update_ratio", "weight_norm"),
}


class Records:
    """Writes TensorBoard event files and the log of a run in the background.

    Every lane is a TensorBoard run, and every layer is a run below it, so that a statistic is one chart with one line
    for each layer. The charts of `FIRST_PAGE` come first; the others are `family/statistic`, `step/…` and
    `epoch/…`. Histograms are written already binned, under their names in the history. Scalars that are NaN or infinite
    are written as they are. NaN and infinities that a histogram counts are also written as the scalars
    `family/nan_count` and `family/infinity_count`, at the steps that have any.

    Args:
      folder: the run folder; events go to `tensorboard/`, the log to `train.log`.
      which: the lanes to write: all, the first, or none. TensorBoard starts with no run selected if there are over 500.
      so_far: the history of a resumed run until now; its events are written again, so that no step appears twice.
    """

    def __init__(self, folder: Path, which: Which = "all", so_far: Sequence[xr.Dataset] = ()):
        self._folder = folder
        self._which = which
        self._writers: dict[str, Any] = {}
        self._queue = ThreadPoolExecutor(1)
        self._written: list[Future] = []
        self._log: tuple[Any, Callable[[], None]] | None = None
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        (folder / "train.log").unlink(missing_ok=True)
        if which != "none":
            self._queue.submit(_metric_writers)
        for part in so_far:
            self.write(part)

    def write(self, part: xr.Dataset) -> None:
        """Queue a chunk of the history, and raise the errors of the chunks before."""
        while self._written and self._written[0].done():
            self._written.pop(0).result()
        self._written.append(self._queue.submit(self._write, part))

    def close(self) -> None:
        """Write what is queued, close the files, and raise the errors from the background."""
        with self._queue:
            self._written.append(self._queue.submit(self._close))
        for written in self._written:
            written.result()

    def _close(self) -> None:
        with named(self._folder / "tensorboard"), contextlib.ExitStack() as each:
            if self._log:
                each.callback(self._log[1])
            for writer in self._writers.values():
                each.callback(writer.close)  # which flushes

    def _write(self, part: xr.Dataset) -> None:
        with named(self._folder / "tensorboard"):
            self._write_lanes(part)

    def _write_lanes(self, part: xr.Dataset) -> None:
        lanes = {"all": range(part.sizes["lane"]), "first": range(1), "none": range(0)}[self._which]
        if not self._writers:
            _allow_open_files(len(lanes) * (1 + part.sizes.get("layer", 0)))
        for lane in lanes:
            name, one = lane_name(part, lane), part.isel(lane=lane)
            self._write_run(name, one.drop_dims("layer", errors="ignore"))
            layered = one[[variable for variable in one.data_vars if "layer" in one.variables[variable].dims]]
            for i, layer in enumerate(layered["layer"].values if layered else ()):
                self._write_run(f"{name}/{layer}", layered.isel(layer=i))
            if lane == 0:
                self._write_log(one)

    def _write_run(self, name: str, run: xr.Dataset) -> None:
        self._folder.stat()  # raises if it has vanished: TensorFlow would make it again, or write to deleted files
        if name not in self._writers:
            self._writers[name] = _open_writer(self._folder / "tensorboard" / name)
            if "layer" not in run.coords:
                self._writers[name].write_hparams({str(k): v.item() for k, v in run.coords.items() if not v.dims})
        for step, scalars, histograms in _events(run):
            self._writers[name].write_scalars(step, scalars)
            self._writers[name].write_summaries(step, histograms, {tag: histogram_metadata() for tag in histograms})

    def _write_log(self, lane: xr.Dataset) -> None:
        """Write the evaluations of a lane as lines for people."""
        self._log = self._log or _open_log(self._folder / "train.log")
        names = [str(name) for name, v in lane.data_vars.items() if v.dims == ("evaluation",)]
        for e, done in enumerate(lane["evaluated_at"].values):
            self._log[0].write_scalars(int(done), {name: lane[name].values[e] for name in names})


def lane_name(part: xr.Dataset, lane: int) -> str:
    """The name of a lane's TensorBoard run, with the number of the replica if there are several."""
    name = f"lane_{lane:03d}_seed_{int(part['seed'].values[lane])}"
    replicas = part["replica"].values
    return f"{name}_replica_{int(replicas[lane])}" if replicas.any() else name


def _allow_open_files(more: int) -> None:
    """Ask the system for more open files: every writer keeps one open, and the usual limits are 256 or 1024."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + 512  # 512 for other files
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


def _metric_writers() -> Any:
    """CLU's metric writers. The import brings TensorFlow and takes seconds, so a run starts it while it compiles."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX sets 1; TensorFlow would also print what it raises
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # oneDNN prints a notice at every log level
    from clu import metric_writers

    return metric_writers


def _open_writer(folder: Path) -> Any:
    """A writer whose file begins with the event "session start", at which TensorBoard forgets older files of this run.

    Without it, a TensorBoard that is open while a run resumes shows the repeated steps twice. Neither CLU nor
    TensorFlow 2 has a public way to write this event, hence the private attributes. They can go when one of them has.
    """
    writer = _metric_writers().SummaryWriter(str(folder))
    import tensorflow as tf

    began = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = tf.compat.v1.Event(wall_time=time.time(), step=0, session_log=began)
    tf.raw_ops.ImportEvent(writer=writer._summary_writer._resource, event=event.SerializeToString())
    return writer


def _events(run: xr.Dataset) -> list[tuple[int, dict[str, Any], dict[str, np.ndarray]]]:
    """(step, scalars, histograms) for every record and evaluation of one lane, or of one layer of a lane."""
    values = {str(name): v.values for name, v in run.variables.items()}
    dims = {str(name): run.variables[name].dims for name in run.data_vars}  # faster than the items of data_vars
    events = []
    for dimension, clock in (("record", "step"), ("evaluation", "evaluated_at")):
        tags = {name: _tag(name, dimension, "layer" in values) for name in dims if dims[name] == (dimension,)}
        binned = [name for name in dims if dims[name] == (dimension, "bin")]
        for i, step in enumerate(values[clock] if tags or binned else ()):
            scalars = {tag: values[name][i] for name, tag in tags.items()}
            histograms = {}
            for name in binned:
                counts, left = values[name][i], values["bin_left"]
                histograms[name] = tensorboard_histogram(counts, left, values["bin_right"])
                scalars |= _not_finite(name.partition("_")[0], counts, left)
            events.append((int(step), scalars, histograms))
    return events


def _tag(name: str, dimension: str, layered: bool) -> str:
    for group, names in FIRST_PAGE.items():
        if name in names:
            return f"{group}/{name}"
    if layered:
        return name.replace("_", "/", 1)
    return f"{'epoch' if dimension == 'evaluation' else 'step'}/{name}"


def _not_finite(family: str, counts: np.ndarray, left: np.ndarray) -> dict[str, int]:
    """The numbers of NaN and of infinities that a histogram counts, without those that are 0."""
    found = {
        "nan_count": counts[np.isnan(left)].sum(),
        "infinity_count": counts[np.isinf(left)].sum(),
    }
    return {f"{family}/{name}": count for name, count in found.items() if count}


class _Log(logging.FileHandler):
    """A log file that raises its errors; `logging` would print them on stderr."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the error that is being handled."""
        raise


def _open_log(path: Path) -> tuple[Any, Callable[[], None]]:
    """CLU's logging writer, writing to a file instead of the terminal, and a function that closes it."""
    from absl import logging as absl_logging
    from clu import metric_writers

    logger = absl_logging.get_absl_logger()
    before = logger.level, logger.propagate
    handler = _Log(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.addFilter(lambda record: record.module == "logging_writer")  # Orbax uses the same logger
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)

    def close() -> None:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]

    return metric_writers.LoggingWriter(), close
