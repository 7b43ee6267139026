"""Figures of a sweep: heat maps and curves over the coordinates of its lanes, in the style of `figures`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from vgjax.config import Config, Hypers
from vgjax.figures import MARKERS, panels, save_figure, styled
from vgjax.sweeps import tables
from vgjax.sweeps.theory_curves import Curve, theory_curve

SYMBOLS = {"sigma_w": "$\\sigma_w$", "sigma_b": "$\\sigma_b$", "sigma_w2": "$\\sigma_w^2$", "sigma_b2": "$\\sigma_b^2$"}
UNITS = {"depth": "depth [hidden layers]", "width": "width [units]", "batch_size": "batch size [examples]"}
NAMES = SYMBOLS | UNITS
MOST_TICKS = 8
MOST_LETTERS = 40  # of all labels along an axis; more are rotated
WIDE = 30  # the scale of the values is logarithmic from this ratio of largest to smallest


class AxisPlaces(NamedTuple):
    """Where the values of a coordinate are on an axis."""

    values: np.ndarray  # sorted and distinct
    at: np.ndarray  # the values if they are numbers; 0, 1, … if they are names
    edges: np.ndarray  # borders of the cells
    is_log: bool


def _places(column: pd.Series) -> AxisPlaces:
    values = np.unique(column.to_numpy())
    if not _is_number(column):
        return AxisPlaces(values, np.arange(len(values)), np.arange(len(values) + 1) - 0.5, False)
    return AxisPlaces(values, values, tables.edges(values), tables.is_log_spaced(values))


def _beside(places: AxisPlaces, values: pd.Series, shift: float) -> np.ndarray:
    """Places of values, shifted a little, so that the intervals of several lines do not overlap."""
    at = places.at[np.searchsorted(places.values, values.to_numpy())]
    first, last = places.edges[[0, -1]]
    return at * (last / first) ** (0.012 * shift) if places.is_log else at + (last - first) * 0.012 * shift


def _is_number(column: pd.Series) -> bool:
    """Whether a column can be an axis of numbers; with infinity in it, it is an axis of names."""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return False
    return bool(np.isfinite(column).all())


def _set_axis(axes: Axes, which: str, name: str, places: AxisPlaces) -> None:
    """Set scale, limits, ticks (at the values if they are few) and label of the axis x or y."""
    axis = getattr(axes, f"{which}axis")
    if places.is_log:
        getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(places.edges[0], places.edges[-1])
    if len(places.values) <= MOST_TICKS or places.at.dtype != places.values.dtype:
        texts = [f"{one:.4g}" if isinstance(one, int | float) else str(one) for one in places.values.tolist()]
        axis.set_ticks(places.at, texts)
        axis.set_ticks([], minor=True)
        if which == "x" and sum(map(len, texts)) > MOST_LETTERS:
            for text in axis.get_ticklabels():
                text.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")
    axis.set_label_text(NAMES.get(name, name.replace("_", " ")))


@styled
def heat_map(table: pd.DataFrame, x: str, y: str, label: str, curve: Curve | None = None) -> Figure:
    """A value over two coordinates: a coloured cell around each point, hatched if lanes diverged.

    Args:
      table: by `tables.cells`.
      x, y: its coordinates.
      label: what the value is [unit].
      curve: by `theory_curve`, drawn as a dashed line.
    """
    figure, grid = panels(width=4.9, height=3.6)
    axes = grid[0, 0]
    columns, rows = _places(table[x]), _places(table[y])
    value, diverged = (table.pivot(index=y, columns=x, values=name).to_numpy(float) for name in ("value", "diverged"))
    mesh = axes.pcolormesh(
        columns.edges, rows.edges, np.ma.masked_invalid(value), norm=_norm(value), cmap="viridis", rasterized=True
    )
    for row, column in np.argwhere(diverged > 0):
        (left, right), (low, high) = columns.edges[column:][:2], rows.edges[row:][:2]
        is_lost = np.isnan(value[row, column])
        axes.add_patch(
            Rectangle(
                (left, low), right - left, high - low,
                fill=False, hatch="////", linewidth=0, edgecolor="0.55" if is_lost else "white",
            )
        )  # fmt: skip
    _set_axis(axes, "x", x, columns)
    _set_axis(axes, "y", y, rows)
    axes.grid(False)
    legend: list[Any] = []
    if curve is not None:
        inside = [np.clip(line, *_beyond(places)) for line, places in ((curve.x, columns), (curve.y, rows))]
        halo = [patheffects.withStroke(linewidth=3.2, foreground="white")]
        ends = [places.edges[[0, -1]] for places in (columns, rows)]
        seen = [(low <= line) & (line <= high) for line, (low, high) in zip(curve[:2], ends, strict=True)]
        where = "" if (seen[0] & seen[1]).any() else " (outside)"
        legend += axes.plot(*inside, "--", color="black", linewidth=1.5, path_effects=halo, label=curve.label + where)
    if (diverged > 0).any():
        legend.append(Patch(facecolor="white", edgecolor="0.55", hatch="////", linewidth=0, label="lanes diverged"))
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=2)
    figure.colorbar(mesh, ax=axes, label=_in_lines(label), pad=0.02)
    axes.set_title(_caption(table, "cell"))
    return figure


def _norm(value: np.ndarray) -> Normalize:
    """The colour scale, logarithmic for a wide range of positive values."""
    seen = value[np.isfinite(value)]
    if seen.size == 0:
        return Normalize(0, 1)
    low, high = float(seen.min()), float(seen.max())
    return LogNorm(low, high) if low > 0 and high > WIDE * low else Normalize(low, high)


def _beyond(places: AxisPlaces) -> tuple[float, float]:
    """Two places outside the axis, where infinite values are drawn."""
    low, high = places.edges[[0, -1]]
    return (low / 10, high * 10) if places.is_log else (2 * low - high, 2 * high - low)


def _in_lines(text: str, most: int = 44) -> str:
    """Break text into as few lines as possible, of about equal length."""
    lines = len(textwrap.wrap(text, most))
    return next(fill for n in range(8, most + 1) if (fill := textwrap.fill(text, n)).count("\n") < lines)


def _caption(table: pd.DataFrame, of: str) -> str:
    """Over how many seeds the means are."""
    counts = table["n"][table["n"] > 0]
    if counts.empty:
        return "no lane stayed finite"
    few, many = counts.min(), counts.max()
    seeds = "1 seed" if many == 1 else f"{many} seeds" if few == many else f"{few} to {many} seeds"
    return f"{'mean of ' if many > 1 else ''}{seeds} per {of}"


@styled
def curves(table: pd.DataFrame, x: str, line: str | None, label: str) -> Figure:
    """A value over one coordinate: means with 95 % intervals, and a line for each value of another coordinate.

    Args:
      table: by `tables.cells`.
      x: the coordinate along the axis.
      line: the coordinate with a line for each value, or None.
      label: what the value is [unit].
    """
    figure, grid = panels(width=5.2, height=3.4)
    axes = grid[0, 0]
    places = _places(table[x])
    _set_axis(axes, "x", x, places)
    rows = [("", table)] if line is None else [(str(name), one) for name, one in table.groupby(line)]
    for which, (name, one) in enumerate(rows):
        at = _beside(places, one[x], which - (len(rows) - 1) / 2)
        value, low, high = one[["value", "low", "high"]].to_numpy(float).T
        lengths = np.nan_to_num([value - low, high - value])  # one seed has no interval
        style: dict[str, Any] = {
            "marker": MARKERS[(which + which // len(MARKERS)) % len(MARKERS)],
            "color": f"C{which}",
        }
        axes.errorbar(at, value, lengths, capsize=2.5, elinewidth=1, label=name, **style)
        lost = at[one["diverged"].to_numpy() > 0]
        style["marker"] = "x"
        axes.plot(lost, np.full(len(lost), 0.03), transform=axes.get_xaxis_transform(), linestyle="", **style)
    seen = table["value"][np.isfinite(table["value"])]
    if seen.size and seen.min() > 0 and seen.max() > WIDE * seen.min():
        axes.set_yscale("log")
    if label.startswith("share"):
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
    axes.set_ylabel(_in_lines(label))
    if line is not None:
        axes.legend(title=NAMES.get(line, line.replace("_", " ")), loc="center left", bbox_to_anchor=(1, 0.5))
    crosses = "; ×: lanes diverged" if (table["diverged"] > 0).any() else ""
    interval = ", 95 % interval" if table["n"].max() > 1 else ""
    axes.set_title(_caption(table, "point") + interval + crosses)
    return figure


def write_plot(path: Path, history: xr.Dataset, spec: str, config: Config, hypers: Hypers) -> Path:
    """Draw the plot `spec`; write it as path.png and path.svg, and its numbers as path.csv.

    Args:
      path: without suffix.
      history: of a sweep.
      spec: "x,value": one curve; "x,y,value": a heat map, or a curve for each y if y holds names.
      config, hypers: base of the sweep, for the curve of theory.

    Returns:
      The PNG.

    Raises:
      ValueError: raised by `tables.parse_plot` or `tables.cells`.
    """
    plot = tables.parse_plot(spec, tables.lanes(history), tables.values_of(history))
    over = [name for name in (plot.x, plot.y) if name]
    table = tables.cells(history, over, plot.value)
    label = tables.description(history, plot.value)
    written = table.assign(what=plot.value)
    if plot.y and _is_number(table[plot.y]):
        curve = theory_curve(history, plot.x, plot.y, config, hypers)
        figure = heat_map(table, plot.x, plot.y, label, curve)
        if curve is not None:
            theory = pd.DataFrame({plot.x: curve.x, plot.y: curve.y}).assign(what="theory")
            written = pd.concat([written, theory])
    else:
        figure = curves(table, plot.x, plot.y, label)
    save_figure(figure, path, written)
    return Path(f"{path}.png")
