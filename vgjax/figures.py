"""Tables to matplotlib, all in one style; computes nothing.

Measurements are points joined by lines, with a band for their spread; theory is a dashed line without points.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
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


def save(figure: Figure, path: Path) -> None:
    """Write path.png and path.svg."""
    with mpl.rc_context(fname=str(STYLE)):
        figure.savefig(path.with_suffix(".png"))
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
