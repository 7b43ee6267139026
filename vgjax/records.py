"""CLU metric writers, fed from the history: TensorBoard and the log. TensorFlow is imported when one is first made."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

Which = Literal["all", "first", "none"]


class Records:
    """TensorBoard event files and a log of a run, one TensorBoard run a lane, written in the background.

    Scalars are `family/statistic/layer` and `epoch/…`; histograms `weights/layer` and `weight_gradients/layer` are
    written pre-binned. NaN and infinities are written as they are.

    Args:
      folder: the run folder; events go to `tensorboard/`, lines to `train.log`.
      which: lanes to write: all, the first, or none.
      so_far: the history that a resumed run has already; its events are written anew, so that no step is doubled.
    """

    def __init__(self, folder: Path, which: Which = "all", so_far: Sequence[xr.Dataset] = ()):
        self._folder = folder
        self._which = which
        self._writers: dict[int, Any] = {}
        self._queue = ThreadPoolExecutor(1)
        self._written: list[Future] = []
        self._log: tuple[Any, Callable[[], None]] | None = None
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        (folder / "train.log").unlink(missing_ok=True)
        for part in so_far:
            self.write(part)

    def write(self, part: xr.Dataset) -> None:
        """Queue a chunk of the history."""
        self._written.append(self._queue.submit(self._write, part))

    def close(self) -> None:
        """Write what is queued, close the files, and raise what went wrong in the background."""
        self._queue.submit(self._close).result()
        self._queue.shutdown()
        for written in self._written:
            written.result()

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.flush()
            writer.close()
        if self._log:
            self._log[1]()

    def _write(self, part: xr.Dataset) -> None:
        lanes = {"all": range(part.sizes["lane"]), "first": range(1), "none": range(0)}[self._which]
        for lane in lanes:
            if lane not in self._writers:
                self._writers[lane] = _open_writer(self._folder, part, lane)
            for step, scalars, summaries, metadata in _events(part.isel(lane=lane)):
                self._writers[lane].write_scalars(step, scalars)
                if summaries:
                    self._writers[lane].write_summaries(step, summaries, metadata)
                elif lane == 0:  # an evaluation: the log is for reading, so it has these alone
                    self._log = self._log or _open_log(self._folder / "train.log")
                    self._log[0].write_scalars(step, scalars)


def lane_name(part: xr.Dataset, lane: int) -> str:
    """The name of a lane's TensorBoard run."""
    return f"lane_{lane:03d}_seed_{int(part['seed'].values[lane])}_replica_{int(part['replica'].values[lane])}"


def _open_writer(folder: Path, part: xr.Dataset, lane: int) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its notice is printed past the log level
    from clu import metric_writers

    name = lane_name(part, lane)
    writer = metric_writers.SummaryWriter(str(folder / "tensorboard" / name))
    scalars = {str(k): float(v.values[lane]) for k, v in part.coords.items() if v.dims == ("lane",)}
    writer.write_hparams(scalars)
    return writer


def _events(lane: xr.Dataset) -> list[tuple[int, dict, dict, dict]]:
    """(step, scalars, histograms, their metadata) for every record and evaluation of one lane."""
    layers = [str(name) for name in lane["layer"].values]
    per_layer = [str(n) for n, v in lane.data_vars.items() if v.dims == ("record", "layer")]
    per_step = [str(n) for n, v in lane.data_vars.items() if v.dims == ("record",)]
    binned = {"weights": "weight_histogram", "weight_gradients": "gradient_histogram"}
    values = {str(name): v.values for name, v in lane.variables.items()}
    edges = values["bin_left"], values["bin_right"]
    events = []
    for r, step in enumerate(values["step"]):
        scalars = {f"step/{name}": values[name][r] for name in per_step}
        scalars |= {_tag(name, layer): values[name][r, i] for name in per_layer for i, layer in enumerate(layers)}
        summaries = {
            f"{tag}/{layer}": tensorboard_histogram(values[name][r, i], *edges)
            for tag, name in binned.items()
            for i, layer in enumerate(layers)
        }
        events.append((int(step), scalars, summaries, {tag: histogram_metadata() for tag in summaries}))
    for e, done in enumerate(values["evaluated_at"]):
        names = [n for n, v in lane.data_vars.items() if v.dims == ("evaluation",)]
        events.append((int(done), {f"epoch/{name}": values[str(name)][e] for name in names}, {}, {}))
    return events


def _tag(name: str, layer: str) -> str:
    family, _, statistic = name.partition("_")
    return f"{family}/{statistic}/{layer}"


def tensorboard_histogram(counts: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A signed log₂ histogram as TensorBoard stores one: float64 [k, 3] of (left, right, count).

    Empty bins at either end are left out, infinities go to the outermost finite edges, NaN has no place.
    """
    limit = float(np.finfo(np.float32).max)
    filled = np.flatnonzero(counts[:-1])
    if not filled.size:
        return np.zeros((0, 3))
    span = slice(filled[0], filled[-1] + 1)
    edges = np.stack([np.clip(left[span], -limit, limit), np.clip(right[span], -limit, limit)])
    return np.concatenate([edges, counts[None, span].astype(np.float64)]).T


def histogram_metadata() -> Any:
    """What tells TensorBoard that a summary is a histogram, binned already."""
    from tensorboard.plugins.histogram import metadata

    return metadata.create_summary_metadata(display_name=None, description="signed log₂ bins")


def _open_log(path: Path) -> tuple[Any, Callable[[], None]]:
    """CLU's logging writer, whose lines go to a file instead of the terminal; and how to close it."""
    from absl import logging as absl_logging
    from clu import metric_writers

    logger = absl_logging.get_absl_logger()
    before = logger.level, logger.propagate
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.addFilter(lambda record: record.module == "logging_writer")  # Orbax speaks through the same logger
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)

    def close() -> None:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]

    return metric_writers.LoggingWriter(), close
