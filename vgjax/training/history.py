"""The history of a run: a labelled data set with the dimensions lane, record, layer, bin and evaluation; on disk too.

Measured numbers are float32 and counts int32, even with JAX_ENABLE_X64; coordinates are float64 and int64. NaN means
undefined: 0/0, the noise of a batch of one, a validation that was not made, the accuracy of a network that gives NaN.

On disk every chunk adds one small netCDF file, which is written completely or not at all. A finished run has one merged
`history.nc`, and tables as CSV.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from vgjax.files import read_sealed, whole, write_sealed
from vgjax.network.layer_names import layer_number
from vgjax.statistics import histograms
from vgjax.statistics.families import all_statistics

NETCDF = threading.Lock()  # the netCDF library is not thread-safe: two threads in it get wrong errors, or crash

# The variables that belong to no layer and no family of statistics: name → description [unit].
RUN_VARIABLES = {
    "loss": "cross-entropy of the step's batch, mean [nats]",
    "accuracy": "share of the step's batch classified right; NaN where the loss is",
    "train_loss": "cross-entropy, mean over the epoch's training steps [nats]",
    "train_accuracy": "share classified right over the epoch's training steps; NaN where the loss is",
    "validation_loss": "cross-entropy over the validation examples, mean [nats]",
    "validation_accuracy": "share of the validation examples classified right; NaN where the loss is",
    "clipped_to_zero": "share of the epoch's steps in which clipping made zeros of a parameter's gradient",
    "first_bad_step": "first step in which something was NaN or infinite, −1: none",
    "first_bad_layer": "the layer where that began",
    "first_bad_in": "in which pass: forward, backward, or update of the weights",
}
ORDER = "order_of_variables"
TABLES = {"statistics.csv": "record", "evaluations.csv": "evaluation", "lanes.csv": "lane"}


class ChunkResults(NamedTuple):
    """What one chunk measured; values may have more rows than there are steps, and the surplus is dropped."""

    steps: Sequence[int]  # the instrumented steps, counted from 0
    records: Mapping[str, np.ndarray]  # name → [lanes, ≥ len(steps), …]
    evaluated_at: Sequence[int]  # number of steps done at each evaluation
    evaluations: Mapping[str, np.ndarray]  # name → [lanes, ≥ len(evaluated_at)]
    divergence: Sequence[Mapping[str, int | str]]  # of each lane, the first number that is not finite so far


def labelled(
    lanes: Mapping[str, np.ndarray],
    layers: Mapping[str, tuple[int, ...]],
    found: ChunkResults,
    steps_per_epoch: int,
    run: str,
) -> xr.Dataset:
    """The results of one chunk as a labelled data set.

    Args:
      lanes: coordinates of the lanes: seed, replica and hyper-parameters, each [lanes].
      layers: name → (fan_in, fan_out).
      found: the results; `vgjax.training.divergence.describe` gives those about divergence.
      steps_per_epoch: for the epoch coordinate.
      run: config, hypers and seeds as JSON, for the history's attribute `run`.
    """
    left, right = histograms.bin_edges()
    fans = np.array(list(layers.values()))
    n, m = len(found.steps), len(found.evaluated_at)
    variables = {
        name: (("lane", "record", *dims_of(name)), np.asarray(values)[:, :n]) for name, values in found.records.items()
    }
    variables |= {
        name: (("lane", "evaluation"), np.asarray(values)[:, :m]) for name, values in found.evaluations.items()
    }
    variables |= {
        name: (("lane",), np.array([place[name] for place in found.divergence])) for name in found.divergence[0]
    }
    described = {name: (*variable, {"long_name": long_name(name)}) for name, variable in variables.items()}
    coordinates = {
        **{name: ("lane", np.asarray(values)) for name, values in lanes.items()},
        "step": ("record", np.asarray(found.steps, np.int64)),
        "epoch": ("record", np.asarray(found.steps) / steps_per_epoch),
        "evaluated_at": ("evaluation", np.asarray(found.evaluated_at, np.int64)),
        "layer": ("layer", list(layers)),
        "fan_in": ("layer", fans[:, 0]),
        "fan_out": ("layer", fans[:, 1]),
        "bin_left": ("bin", left),
        "bin_right": ("bin", right),
    }
    return xr.Dataset(described, coordinates, {"run": run})


def dims_of(name: str) -> tuple[str, ...]:
    """The dimensions of a recorded variable after (lane, record)."""
    return () if name in RUN_VARIABLES else all_statistics()[name].dims


def long_name(name: str) -> str:
    """What a variable is, with its unit."""
    return RUN_VARIABLES[name] if name in RUN_VARIABLES else all_statistics()[name].long_name


def join(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Consecutive chunks as one history."""
    along = {}
    for dimension in ("record", "evaluation"):
        names = [name for name, v in parts[0].variables.items() if dimension in v.dims]
        along[dimension] = xr.concat([part[names].drop_vars(_foreign(part, names)) for part in parts], dimension)
    constant = parts[-1].drop_dims(["record", "evaluation"])  # the last part knows all divergence
    return xr.merge([constant, *along.values()], compat="override", combine_attrs="override")


def beside(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Histories of different lanes as one history; layers are matched by name, records and evaluations by step.

    Where one of them has no value, it gets NaN, or a count of 0.
    """
    by_step = [part.swap_dims(record="step", evaluation="evaluated_at").drop_attrs(deep=False) for part in parts]
    variables = parts[0].data_vars.items()
    fill = {str(name): 0 if np.issubdtype(v.dtype, np.integer) else np.nan for name, v in variables}
    whole = xr.concat(
        by_step, "lane", data_vars="minimal", coords="different", compat="equals", join="outer", fill_value=fill
    )
    whole = whole.isel(layer=np.argsort([layer_number(name) for name in whole["layer"].values]))
    return whole.swap_dims(step="record", evaluated_at="evaluation")


def _foreign(part: xr.Dataset, names: list) -> list:
    return [name for name in part[names].coords if name not in names]


def write_chunk(folder: Path, part: xr.Dataset) -> None:
    """Add a chunk to a run's history on disk; its file is written completely or not at all."""
    _write(part, folder / "history" / f"until-{int(part['evaluated_at'].values[-1]):09d}.nc")


def forget_after(folder: Path, step: int) -> int:
    """Delete the chunks that end after `step`, since they are about to run again; a merged history goes as a whole.

    Returns:
      The step at which the history now ends.
    """
    merged = folder / "history.nc"
    if merged.exists() and int(read(merged)["evaluated_at"].values[-1]) > step:
        merged.unlink()
        step = 0
    for path in _parts(folder):
        if int(path.stem.split("-")[1]) > step:
            path.unlink()
    return step


def finish(folder: Path, history: xr.Dataset) -> None:
    """Write the tables, then `history.nc`, whose presence says that the tables are complete; delete the chunks."""
    write_tables(folder, history)
    _write(history, folder / "history.nc")
    shutil.rmtree(folder / "history", ignore_errors=True)


def write_tables(folder: Path, history: xr.Dataset) -> None:
    """Write three CSV files, with one row for each (lane, step, layer), (lane, evaluation) and lane."""
    scalars = history.drop_dims("bin")
    for file, dimension in TABLES.items():
        names = [
            name
            for name, v in scalars.data_vars.items()
            if next(d for d in TABLES.values() if d in v.dims) == dimension
        ]
        table = scalars[names].to_dataframe().reset_index()
        with whole(folder / file) as temporary:
            table.to_csv(temporary, index=False)


def load(folder: str | Path) -> xr.Dataset:
    """Load the history of a run folder; the run may be unfinished.

    Raises:
      ValueError: the folder has no history, or one of its files is damaged.
    """
    folder = Path(folder)
    paths = [folder / "history.nc"] if (folder / "history.nc").exists() else _parts(folder)
    if not paths:
        raise ValueError(f"{folder} has no history; allowed: the folder of a run")
    return join([read(path) for path in paths]) if len(paths) > 1 else read(paths[0])


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "history").glob("until-*.nc"))


def read(path: Path) -> xr.Dataset:
    """Read the history in one file.

    Raises:
      ValueError: the file is damaged.
    """
    content = read_sealed(path)
    try:
        with NETCDF, xr.open_dataset(content, engine="netcdf4") as dataset:
            return _in_order(dataset.load().drop_encoding())
    except Exception as error:
        raise ValueError(f"{path} is damaged or is no history: {error}") from None


def _write(dataset: xr.Dataset, path: Path) -> None:
    encoding = {name: {"zlib": True, "complevel": 1} for name, v in dataset.data_vars.items() if "bin" in v.dims}
    ordered = dataset.assign_attrs({ORDER: " ".join(map(str, dataset.variables))})
    with NETCDF:
        content = ordered.to_netcdf(engine="netcdf4", encoding=encoding)
    write_sealed(path, content)


def _in_order(dataset: xr.Dataset) -> xr.Dataset:
    """Put the variables back into their own order; netCDF in memory sorts them by name."""
    names = dataset.attrs.pop(ORDER, "").split() or list(dataset.variables)
    ordered = {name: dataset[name].variable for name in names}
    coordinates = {name: ordered.pop(name) for name in names if name in dataset.coords}
    return xr.Dataset(ordered, coordinates, dataset.attrs)
