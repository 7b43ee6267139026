"""Tables to matplotlib, all in one style; computes nothing.

Measurements are points joined by lines, with a band for their spread; theory is a dashed line without points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

STYLE = Path(__file__).with_name("paper.mplstyle")
MARKERS = "osD^vP*"

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function in the package's style, leaving the user's own settings alone."""

    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(fname=str(STYLE)):
            return draw(*args, **kwargs)

    return inner


def panels(rows: int = 1, columns: int = 1, width: float = 4.0, height: float = 3.0, **kwargs: Any) -> tuple:
    """A figure and its axes [rows, columns], each panel width × height inches; no global state of pyplot."""
    figure = Figure(figsize=(columns * width, rows * height))
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def series(
    axes: Axes, x: ArrayLike, centre: ArrayLike, low: ArrayLike, high: ArrayLike, label: str, which: int
) -> None:
    """A measured line with points, and a band from low to high."""
    axes.plot(x, centre, marker=MARKERS[which % len(MARKERS)], color=f"C{which}", label=label)
    axes.fill_between(x, low, high, color=f"C{which}", alpha=0.18, linewidth=0)


def theory_line(axes: Axes, x: ArrayLike, y: ArrayLike, which: int, label: str | None = None) -> None:
    """A predicted line: dashed, without points."""
    axes.plot(x, y, linestyle="--", linewidth=1.1, color=f"C{which}", label=label)


def theory_band(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, label: str | None = None) -> None:
    """Where theory expects the middle 95 % of single networks: grey, below everything."""
    axes.fill_between(x, low, high, color="0.85", linewidth=0, zorder=0, label=label)


def published_points(axes: Axes, x: ArrayLike, y: ArrayLike, which: int, label: str | None = None) -> None:
    """Published values: large hollow points in black rims, above everything."""
    axes.plot(
        x, y, linestyle="none", marker=MARKERS[which % len(MARKERS)], markersize=7, markerfacecolor="none",
        markeredgecolor="black", markeredgewidth=0.9, zorder=5, label=label,
    )  # fmt: skip


def octave_map(axes: Axes, x: ArrayLike, exponents: np.ndarray, shares: np.ndarray, most: float) -> Any:
    """How magnitudes are spread over time: share per octave as a map, log₁₀ magnitude upwards.

    Args:
      axes: where.
      x: times [records].
      exponents: binary exponent of each octave.
      shares: [records, octaves].
      most: the share at the top of the colour scale.
    """
    seen = np.flatnonzero(shares.max(0) > 1e-3)
    span = slice(seen[0], seen[-1] + 1) if seen.size else slice(None)
    shown = np.where(shares[:, span] > 1e-4, shares[:, span], np.nan)
    mesh = axes.pcolormesh(
        x,
        exponents[span] * np.log10(2),
        shown.T,
        norm=PowerNorm(0.5, vmin=0, vmax=most),
        shading="nearest",
        rasterized=True,
    )
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{value:g}}}$"))
    axes.grid(False)
    return mesh


def label_ends(axes: Axes, x: float, labels: dict[str, tuple[float, int]], gap: float = 0.06) -> None:
    """Name lines at their right ends, (y, colour index) each, pushed apart so that names do not overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    places = sorted((to_axes.transform((x, y))[1], name, which) for name, (y, which) in labels.items())
    heights = [place for place, _, _ in places]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    for height, (_, name, which) in zip(heights, places, strict=True):
        axes.text(1.01, height, name, color=f"C{which}", transform=axes.transAxes, va="center", fontsize=8)


@styled
def signal(rows: Mapping[str, xr.Dataset], names: Mapping[str, str], most_steps: int = 4) -> Figure:
    """How the signal fares from layer to layer: the predicted band, and step 0 and later steps on it.

    Args:
      rows: one a start: what it is called → `analysis.compared`, or `analysis.band` where nothing was measured.
      names: what each signal is called.
      most_steps: records that are shown.
    """
    columns = [name for name in names if all(name in row["signal"] for row in rows.values())]
    figure, panels_ = panels(len(rows), len(columns), width=3.6, height=3.0)
    for (title, row), line in zip(rows.items(), panels_, strict=True):
        layers = [int(name.rpartition("_")[2]) for name in row["layer"].values]
        for name, axes in zip(columns, line, strict=True):
            one = row.sel(signal=name)
            axes.fill_between(
                layers, one["predicted_low"], one["predicted_high"], color="0.85", label="predicted, 95 %"
            )
            axes.plot(layers, one["predicted"], color="0.35", linestyle="--", linewidth=1.1)
            if "measured" in one:
                _steps(axes, layers, one, most_steps)
            axes.set(yscale="log", xlabel="layer", title=f"{names[name]}{', ' if title else ''}{title}")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    panels_[0][-1].legend()
    return figure


def _steps(axes: Axes, layers: list[int], one: xr.Dataset, most: int) -> None:
    """Step 0 with its spread over lanes, and some later steps."""
    records = np.unique(np.linspace(0, one.sizes["record"] - 1, most).astype(int))
    for which, record in enumerate(records):
        centre, low, high = (one[f"measured{end}"].isel(record=record) for end in ("", "_low", "_high"))
        series(axes, layers, centre, low, high, f"step {one['step'].values[record]}", which)


def write_signal(path: Path, rows: Mapping[str, xr.Dataset], names: Mapping[str, str]) -> Path:
    """Draw `signal`, and write it beside the numbers as path.png, path.svg and path.csv.

    Returns:
      The PNG.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save(signal(rows, names), path)
    tables = [row.to_dataframe().reset_index().assign(start=title) for title, row in rows.items()]
    pd.concat(tables).to_csv(f"{path}.csv", index=False)
    return Path(f"{path}.png")


def save(figure: Figure, path: Path) -> None:
    """Write path.png and path.svg."""
    with mpl.rc_context(fname=str(STYLE)):
        figure.savefig(f"{path}.png")
        figure.savefig(f"{path}.svg", metadata={"Date": None})
