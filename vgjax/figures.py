"""Draw tables with matplotlib in one style; nothing is computed here.

Measurements are points joined by lines, with a band for their spread. Theory is a dashed line without points.
"""

from __future__ import annotations

import io
import json
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

from vgjax.environment import environment
from vgjax.files import whole
from vgjax.network.layer_names import layer_number

STYLE = Path(__file__).with_name("paper.mplstyle")
MARKERS = "osD^vP*"

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function in the package's style; the user's own settings stay as they are."""

    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(fname=str(STYLE)):
            return draw(*args, **kwargs)

    return inner


def panels(rows: int = 1, columns: int = 1, width: float = 4.0, height: float = 3.0, **kwargs: Any) -> tuple:
    """A figure and its axes [rows, columns], each panel width × height inches. It does not touch pyplot's state."""
    figure = Figure(figsize=(columns * width, rows * height))
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def series(
    axes: Axes, x: ArrayLike, centre: ArrayLike, low: ArrayLike, high: ArrayLike, label: str, which: int
) -> None:
    """A measured line with points, and a band from low to high."""
    axes.plot(x, centre, marker=MARKERS[which % len(MARKERS)], color=f"C{which}", label=label)
    axes.fill_between(x, low, high, color=f"C{which}", alpha=0.18, linewidth=0)


def points(axes: Axes, x: ArrayLike, found: xr.Dataset, which: int, label: str | None = None) -> None:
    """Measured points without a line, for plots in which theory is the line; `found`: by `analysis.interval`."""
    y, low, high = (np.atleast_1d(found[end].values) for end in ("mean", "low", "high"))
    axes.errorbar(
        np.atleast_1d(x), y, [y - low, high - y], linestyle="none", marker=MARKERS[which % len(MARKERS)],
        color=f"C{which}", elinewidth=1, capsize=2, zorder=4, label=label,
    )  # fmt: skip


def theory_line(axes: Axes, x: ArrayLike, y: ArrayLike, which: int, label: str | None = None) -> None:
    """A predicted line: dashed, without points."""
    axes.plot(x, y, linestyle="--", linewidth=1.1, color=f"C{which}", label=label)


def theory_band(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, label: str | None = None) -> None:
    """The predicted band of the middle 95 % of single networks: grey, behind everything."""
    axes.fill_between(x, low, high, color="0.85", linewidth=0, zorder=0, label=label)


def published_points(axes: Axes, x: ArrayLike, y: ArrayLike, which: int, label: str | None = None) -> None:
    """Published values: large hollow points with black rims, in front of everything."""
    axes.plot(
        x, y, linestyle="none", marker=MARKERS[which % len(MARKERS)], markersize=7, markerfacecolor="none",
        markeredgecolor="black", markeredgewidth=0.9, zorder=5, label=label,
    )  # fmt: skip


def octave_map(axes: Axes, x: ArrayLike, exponents: np.ndarray, shares: np.ndarray, most: float) -> Any:
    """A map of magnitudes over time: colour is the share of each octave, the vertical axis log₁₀ magnitude.

    Args:
      axes: where to draw.
      x: times [records].
      exponents: binary exponents of the octaves.
      shares: [records, octaves].
      most: largest share of the colour scale.
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
    """Write the names of lines at their right ends: name → (y, colour index). Names are moved apart to not overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    places = sorted((to_axes.transform((x, y))[1], name, which) for name, (y, which) in labels.items())
    heights = [place for place, _, _ in places]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    for height, (_, name, which) in zip(heights, places, strict=True):
        axes.text(1.01, height, name, color=f"C{which}", transform=axes.transAxes, va="center", fontsize=8)


@styled
def signal(rows: Mapping[str, xr.Dataset], names: Mapping[str, str], most_steps: int = 4) -> Figure:
    """The signal over the layers: the predicted band, and the measurement at step 0 and at later steps.

    Args:
      rows: title of the row → `analysis.compared`, or `analysis.band` if nothing was measured; a row for each pair of
        σ_w and σ_b.
      names: signal → its title.
      most_steps: largest number of records that are drawn.
    """
    columns = [name for name in names if all(name in row["signal"] for row in rows.values())]
    figure, panels_ = panels(len(rows), len(columns), width=3.6, height=3.0)
    for (title, row), line in zip(rows.items(), panels_, strict=True):
        layers = [layer_number(name) for name in row["layer"].values]
        for name, axes in zip(columns, line, strict=True):
            one = row.sel(signal=name)
            one = one.where((one > 1e-150) & (one < 1e150))  # the range that matplotlib's logarithmic axis can draw
            theory_band(axes, layers, one["predicted_low"], one["predicted_high"], "predicted, 95 %")
            axes.plot(layers, one["predicted"], color="0.35", linestyle="--", linewidth=1.1)
            if "measured" in one:
                _steps(axes, layers, one, most_steps)
            if any(np.isfinite(one[what]).any() for what in ("predicted", "measured") if what in one):
                axes.set_yscale("log")
            axes.set(xlabel="layer", title=f"{names[name]}{', ' if title else ''}{title}")
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
    """Draw `signal`; write it as path.png and path.svg, and its numbers as path.csv.

    Returns:
      The PNG.
    """
    tables = [row.to_dataframe().reset_index().assign(start=title) for title, row in rows.items()]
    save_figure(signal(rows, names), path, pd.concat(tables))
    return Path(f"{path}.png")


def as_png(figure: Figure) -> bytes:
    """The figure as PNG, in the package's style: matplotlib looks colours up when it draws."""
    picture = io.BytesIO()
    with mpl.rc_context(fname=str(STYLE)):
        figure.savefig(picture, format="png")
    return picture.getvalue()


def save_figure(figure: Figure, path: Path, table: pd.DataFrame) -> None:
    """Write path.png, path.svg and the numbers as path.csv, each complete or not at all.

    The metadata of the pictures (`Description`, JSON) has the versions, devices and commit that made them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"Description": json.dumps({name: value for name, value in environment().items() if name != "date"})}
    with mpl.rc_context(fname=str(STYLE)):
        for kind, metadata in (("png", made), ("svg", made | {"Date": None})):
            with whole(Path(f"{path}.{kind}")) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)
    with whole(Path(f"{path}.csv")) as temporary:
        table.to_csv(temporary, index=False)
