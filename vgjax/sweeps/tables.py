"""Tables of a sweep: one number for each lane, means over the lanes of a cell, and the best settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from vgjax import analysis
from vgjax.analysis import Estimate, estimate, share_estimate
from vgjax.config import Hypers
from vgjax.names import nearest
from vgjax.network.layer_names import layer_names
from vgjax.statistics.families import all_statistics, chosen, statistics_of
from vgjax.sweeps.axes import STANDS_FOR
from vgjax.sweeps.grid import Point
from vgjax.training.history import RUN_VARIABLES, long_name

DRAWS = ("seed", "replica")  # coordinates over which means are taken
DECAY = "decades that δ loses per layer on its way back"
RANKED = ("validation_accuracy", "validation_loss", "train_accuracy", "train_loss")  # values that have a best


class Plot(NamedTuple):
    """What a plot shows: a value over x, or over x and y."""

    x: str
    y: str | None
    value: str


def all_values() -> list[str]:
    """The names of all values that a map can show."""
    run_variables = [name for name in RUN_VARIABLES if not name.startswith("first_bad_")]
    statistics = [one.name for one in all_statistics().values() if "bin" not in one.dims]
    return ["decay", *run_variables, *statistics, "first_bad_step"]


def parse_plot(spec: str, coordinates: Iterable[str], values: Iterable[str] | None = None) -> Plot:
    """Read "x,value" or "x,y,value"; a value of one layer is written as gradient_rms[layer_3].

    Args:
      spec: what the user wrote.
      coordinates: names that x and y may have.
      values: names that the value may have; None: `all_values()`.

    Raises:
      ValueError: another form, or an unknown name.

    >>> parse_plot("sigma_w, depth, delta_rms[layer_2]", ["sigma_w", "depth"])
    Plot(x='sigma_w', y='depth', value='delta_rms[layer_2]')
    """
    *over, value = [part.strip() for part in spec.split(",")]
    if len(over) not in (1, 2) or len(set(over)) < len(over):
        raise ValueError(f"plot {spec!r} is not allowed; allowed: X,VALUE or X,Y,VALUE")
    allowed = list(coordinates)
    for name in over:
        if name not in allowed:
            raise ValueError(f"plot {spec!r}: no lane has a {name!r}; {nearest(name, allowed)}")
    name, _ = _name_and_layer(value)
    if name not in (known := all_values() if values is None else list(values)):
        raise ValueError(f"plot {spec!r}: unknown value {name!r}; {nearest(name, known)}")
    return Plot(over[0], over[1] if len(over) > 1 else None, value)


def check_plot(spec: str, points: Sequence[Point]) -> None:
    """Refuse, before a sweep, a plot that could not be drawn after it.

    Args:
      spec: as `parse_plot` takes it.
      points: the points of the sweep.

    Raises:
      ValueError: an unknown name, a value that is not recorded, or cells in which points would be mixed.
    """
    names = dict.fromkeys((*Hypers._fields, *(name for point in points for name in point.coordinates)))
    rows = [{name: point.value(name) for name in names} | {"seed": point.seed} for point in points]
    missing = {*all_statistics()}
    for record in {point.config.record for point in points}:
        missing -= {one.name for one in statistics_of(chosen(record))}
    missing |= {"decay"} if "delta_rms" in missing else set()
    plot = parse_plot(spec, [*names, "seed"], [name for name in all_values() if name not in missing])
    _by_cell(pd.DataFrame(rows), [name for name in plot[:2] if name])


def _name_and_layer(value: str) -> tuple[str, str]:
    found = re.fullmatch(r"(\w+)(?:\[(\w+)\])?", value)
    return (found[1], found[2] or "") if found else (value, "")


def lanes(history: xr.Dataset) -> pd.DataFrame:
    """The coordinates of the lanes, a row for each lane."""
    return pd.DataFrame(
        {name: c.values for name, c in history.coords.items() if c.dims == ("lane",) and name != "lane"}
    )


def swept(table: pd.DataFrame) -> list[str]:
    """The columns of `lanes` that vary, without seeds and replicas; sigma_w2 replaces sigma_w if both are there."""
    replaced = {STANDS_FOR[name] for name in table if name in STANDS_FOR}
    return [name for name in table if name not in (*DRAWS, *replaced) and table[name].nunique(dropna=False) > 1]


def values_of(history: xr.Dataset) -> list[str]:
    """The values that `lane_values` can take from this history."""
    has_delta = "delta_rms" in history or "delta_log10_rms" in history
    return [name for name in all_values() if name in history or (name == "decay" and has_delta)]


def lane_values(history: xr.Dataset, value: str) -> np.ndarray:
    """One number for each lane, [lane]; NaN if it is not finite.

    Args:
      history: lanes of any depths, padded with NaN.
      value: a variable of the evaluations (the last one is taken; NaN for a lane that diverged); a statistic (at the
        first record; of the first layer, or of layer_3 as `name[layer_3]`); `decay` (at the first record); or
        `first_bad_step` (NaN if there is none).

    Raises:
      ValueError: no such value or layer.
    """
    name, layer = _name_and_layer(value)
    if name not in (known := values_of(history)):
        raise ValueError(f"unknown value {name!r}; {nearest(name, known)}")
    has_layers = name != "decay" and "layer" in history[name].dims
    names = [str(one) for one in history["layer"].values] if has_layers else []
    if layer and layer not in names:
        raise ValueError(f"{value!r} is not allowed; {nearest(layer, names) if names else f'allowed: {name}'}")
    diverged = history["first_bad_step"].values >= 0
    if name == "decay":
        numbers = _decays(history)
    elif name == "first_bad_step":
        numbers = np.where(diverged, history[name].values, np.nan)
    elif "evaluation" in history[name].dims:
        rows = pd.DataFrame(history[name].transpose("lane", "evaluation").values.astype(np.float64))
        numbers = np.where(diverged, np.nan, rows.ffill(axis=1).iloc[:, -1])  # short lanes are padded with NaN
    else:
        first = history[name].isel(record=0).astype(np.float64)
        numbers = (first.isel(layer=names.index(layer) if layer else 0) if has_layers else first).values
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _decays(history: xr.Dataset) -> np.ndarray:
    """`analysis.decay` at the first record, for the lanes of each depth: it leaves out the last layer of a lane."""
    names = [str(name) for name in history["layer"].values]
    if names != layer_names(len(names)):
        raise ValueError(f"decay cannot be computed from {', '.join(names)} alone; allowed: all layers recorded")
    rms = analysis.root_mean_squares(history)["delta_rms"].isel(record=0)
    depths = np.broadcast_to(history["fan_in"].notnull().sum("layer").values, history.sizes["lane"])
    found = np.full(len(depths), np.nan)
    for depth in np.unique(depths):
        found[depths == depth] = analysis.decay(rms.isel(lane=depths == depth, layer=slice(int(depth))))
    return found


def description(history: xr.Dataset, value: str) -> str:
    """What a value is, with its unit, layer and step."""
    name, layer = _name_and_layer(value)
    if name == "decay":
        return f"{DECAY}, {_first_step(history)}"
    text = str(history[name].attrs.get("long_name") or long_name(name)).partition(";")[0]
    if name == "first_bad_step":
        return text.removesuffix(", −1: none")
    if "record" not in history[name].dims:
        return text
    of_layer = f", {layer or history['layer'].values[0]}" if "layer" in history[name].dims else ""
    return f"{text}{of_layer}, {_first_step(history)}"


def _first_step(history: xr.Dataset) -> str:
    return f"step {int(np.nanmin(history['step'].isel(record=0)))}"


def cells(history: xr.Dataset, over: Sequence[str], value: str) -> pd.DataFrame:
    """The mean over seeds of a value, for each cell: the lanes that agree in the coordinates `over`.

    Args:
      history: of a sweep.
      over: names of lane coordinates, at least one.
      value: see `lane_values`.

    Returns:
      A row for each cell, sorted: the coordinates; value, low, high (mean and Student's 95 % interval over seeds; a
      seed is the mean of its replicas); n, the number of seeds; diverged and lanes, numbers of lanes.

    Raises:
      ValueError: no such coordinate or value, or lanes of a cell differ in a coordinate that is not in `over`.
    """
    table = lanes(history)
    by_cell = _by_cell(table, over)
    numbers = lane_values(history, value)
    diverged = history["first_bad_step"].values >= 0
    mean_of = share_estimate if description(history, value).startswith("share ") else estimate
    rows = []
    for rows_of_cell in by_cell.indices.values():
        of_seed = pd.Series(numbers[rows_of_cell]).groupby(table["seed"].values[rows_of_cell]).mean().dropna()
        found = mean_of(of_seed.to_numpy()) if len(of_seed) else Estimate(np.nan, np.nan, np.nan, 0)
        point = [table[name].values[rows_of_cell[0]] for name in over]
        rows.append((*point, *found, int(diverged[rows_of_cell].sum()), len(rows_of_cell)))
    columns = [*over, "value", "low", "high", "n", "diverged", "lanes"]
    return pd.DataFrame(rows, columns=columns).sort_values(list(over), ignore_index=True)


def _by_cell(table: pd.DataFrame, over: Sequence[str]) -> Any:
    """Group the lanes; refuse if the lanes of a cell differ in more than seed and replica."""
    for name in over:
        if name not in table:
            raise ValueError(f"no lane has a {name!r}; {nearest(name, [str(one) for one in table])}")
    by_cell = table.groupby(list(over), dropna=False)
    others = [name for name in swept(table) if name not in over]
    mixed = [name for name in others if (by_cell[name].nunique(dropna=False) > 1).any()]
    if mixed:
        said = ", ".join(f"{name} ({_few(table[name])})" for name in mixed)
        one = f"history.isel(lane=history[{mixed[0]!r}] == {table[mixed[0]].tolist()[0]!r})"
        raise ValueError(f"a cell of {', '.join(over)} would mix {said}; allowed: plot over it, or keep one, {one}")
    return by_cell


def _few(column: pd.Series) -> str:
    """The first values of a column as text."""
    found = [f"{one:g}" if isinstance(one, float) else str(one) for one in column.drop_duplicates()]
    return ", ".join(found[:3]) + (" …" if len(found) > 3 else "")


def best(history: xr.Dataset, value: str = "validation_accuracy", n: int = 10) -> pd.DataFrame:
    """The n best settings of a sweep, as rows of `cells`: largest accuracy or smallest loss, mean over seeds.

    Raises:
      ValueError: the value is none of `RANKED`.
    """
    if value not in RANKED:
        raise ValueError(f"there is no best {value!r}; {nearest(value, RANKED)}")
    found = cells(history, swept(lanes(history)) or [Hypers._fields[0]], value)
    return found.sort_values("value", ascending=value.endswith("loss"), ignore_index=True, kind="stable").head(n)


# Scales of axes


def is_log_spaced(values: ArrayLike) -> bool:
    """Whether values are positive, and neighbours have nearly equal ratios rather than equal differences."""
    x = np.unique(np.asarray(values, np.float64))
    if len(x) < 2 or x[0] <= 0 or not np.isfinite(x[-1]):
        return False
    if len(x) == 2:
        return bool(x[1] >= 10 * x[0])
    by_ratio, by_difference = (np.std(gaps) / np.mean(gaps) for gaps in (np.diff(np.log(x)), np.diff(x)))
    return bool(by_ratio < by_difference / 2)


def edges(values: ArrayLike) -> np.ndarray:
    """Borders of cells around sorted values: halfway between neighbours, by ratio if they are log-spaced.

    Args:
      values: distinct and ascending, [n].

    Returns:
      [n + 1].

    >>> edges([1.0, 2.0, 4.0, 8.0]).round(2).tolist()
    [0.71, 1.41, 2.83, 5.66, 11.31]
    """
    x = np.asarray(values, np.float64)
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    if is_log_spaced(x):
        return np.exp(_halfway(np.log(x)))
    return _halfway(x)


def _halfway(x: np.ndarray) -> np.ndarray:
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])
