"""The labelled data set of a run: dimensions lane, record, layer, bin and evaluation; on disk and back.

Measured numbers are float32 and counts int32, with JAX_ENABLE_X64 too; coordinates are float64 and int64. NaN stands
for what is undefined: 0/0, the noise of a batch of one, a validation not made, the accuracy of a network of NaN.
On disk a history grows by one small netCDF file a chunk, each written whole or not at all; a finished run is merged
into one `history.nc`, and its tables written as CSV.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from vgjax.files import read_sealed, whole, write_sealed
from vgjax.network.layer_names import layer_number
from vgjax.statistics import histograms
from vgjax.statistics.families import all_statistics

NETCDF = threading.Lock()  # its library is no good for two threads at once: wrong errors, and crashes

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


def chunk(
    lanes: Mapping[str, np.ndarray],
    layers: Mapping[str, tuple[int, ...]],
    steps: Sequence[int],
    records: Mapping[str, np.ndarray],
    evaluated_at: Sequence[int],
    evaluation: Mapping[str, np.ndarray],
    steps_per_epoch: int,
    divergence: Sequence[Mapping[str, int | str]],
    run: str,
) -> xr.Dataset:
    """Label what one chunk left behind.

    Args:
      lanes: coordinates of the lanes: seed, replica and hyper-parameters, each [lanes].
      layers: name → (fan_in, fan_out).
      steps: the instrumented steps, counted from 0.
      records: name → [lanes, ≥ len(steps), …]; what is beyond the steps is dropped.
      evaluated_at: number of steps done at each evaluation.
      evaluation: name → [lanes, ≥ len(evaluated_at)], likewise.
      steps_per_epoch: for the epoch coordinate.
      divergence: of each lane, where it left the finite numbers so far (see `vgjax.training.divergence`).
      run: its config, hypers and seeds as JSON, the history's attribute of that name.
    """
    left, right = histograms.bin_edges()
    fans = np.array(list(layers.values()))
    n, m = len(steps), len(evaluated_at)
    variables = {
        name: (("lane", "record", *dims_of(name)), np.asarray(values)[:, :n]) for name, values in records.items()
    }
    variables |= {name: (("lane", "evaluation"), np.asarray(values)[:, :m]) for name, values in evaluation.items()}
    variables |= {name: (("lane",), np.array([lane[name] for lane in divergence])) for name in divergence[0]}
    described = {name: (*variable, {"long_name": long_name(name)}) for name, variable in variables.items()}
    coordinates = {
        **{name: ("lane", np.asarray(values)) for name, values in lanes.items()},
        "step": ("record", np.asarray(steps, np.int64)),
        "epoch": ("record", np.asarray(steps) / steps_per_epoch),
        "evaluated_at": ("evaluation", np.asarray(evaluated_at, np.int64)),
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
    constant = parts[-1].drop_dims(["record", "evaluation"])  # the last one knows most
    return xr.merge([constant, *along.values()], compat="override", combine_attrs="override")


def beside(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Histories of different lanes as one; what some of them lack is NaN there, or a count of 0.

    Layers, records and evaluations are matched by name and step.
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
    """Add a chunk to a run's history on disk; the file is there whole or not at all."""
    _write(part, folder / "history" / f"until-{int(part['evaluated_at'].values[-1]):09d}.nc")


def forget_after(folder: Path, step: int) -> int:
    """Drop the chunks that end after `step`: they are about to be run again. Merged ones can only go together.

    Returns:
      The step after which the history ends now.
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
    """Write the whole history as three tables and `history.nc`, which says that all are there; drop the chunks."""
    write_tables(folder, history)
    _write(history, folder / "history.nc")
    shutil.rmtree(folder / "history", ignore_errors=True)


def write_tables(folder: Path, history: xr.Dataset) -> None:
    """The history as CSV files: a row a lane, step and layer; a row a lane and evaluation; a row a lane."""
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
    """The history of a run folder, finished or not.

    Raises:
      ValueError: there is none, or a file of it is damaged.
    """
    folder = Path(folder)
    paths = [folder / "history.nc"] if (folder / "history.nc").exists() else _parts(folder)
    if not paths:
        raise ValueError(f"{folder} has no history; allowed: the folder of a run")
    return join([read(path) for path in paths]) if len(paths) > 1 else read(paths[0])


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "history").glob("until-*.nc"))


def read(path: Path) -> xr.Dataset:
    """A history by its file.

    Raises:
      ValueError: it is damaged.
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
    """The variables as they were before netCDF, in memory, put them into the alphabet's."""
    names = dataset.attrs.pop(ORDER, "").split() or list(dataset.variables)
    ordered = {name: dataset[name].variable for name in names}
    coordinates = {name: ordered.pop(name) for name in names if name in dataset.coords}
    return xr.Dataset(ordered, coordinates, dataset.attrs)
