"""Figures of the clinic: variance, singular values, phase diagrams, accuracy of the initializers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vgjax.figures import MARKERS, panels, styled, theory_line


@styled
def variance_law(shapes: Sequence[str], measured: Sequence[Any], formulas: dict[str, Sequence[float]]) -> Figure:
    """fan_in · Var(W) for each shape: measured points (value, low, high), and a dashed line for each formula."""
    figure, grid = panels(width=5.4)
    axes, x = grid[0, 0], np.arange(len(shapes))
    for i, (name, values) in enumerate(formulas.items(), 1):
        theory_line(axes, x, values, i, name)
    value, low, high = np.transpose([one[:3] for one in measured])
    axes.errorbar(x, value, [value - low, high - value], fmt="o", color="C0", capsize=3, label="measured", zorder=4)
    axes.set_xticks(x, shapes)
    axes.set(xlabel="fan_in × fan_out", ylabel="fan_in · Var(W)", ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def spectra(found: dict[str, np.ndarray], densities: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Histograms of the singular values over their RMS, a panel for each shape; dashed: independent elements."""
    figure, grid = panels(1, len(found), width=3.6)
    for axes, (shape, values) in zip(grid[0], found.items(), strict=True):
        s, density = densities[shape]
        edges = np.linspace(0, max(values.max(), s[-1]) * 1.02, 61)
        axes.hist(values.ravel(), edges, density=True, color="C0", alpha=0.6, label="measured")
        theory_line(axes, s, density, 1, "independent elements")
        axes.set(title=shape, xlabel="singular value / RMS", ylabel="density", ylim=(0, min(3.0, axes.get_ylim()[1])))
    grid[0, -1].legend()
    return figure


@styled
def phase_diagrams(
    lines: dict[str, tuple[np.ndarray, np.ndarray]], marks: dict[str, tuple[float, float]], most: float
) -> Figure:
    """The critical line in the plane of σ_w² and σ_b², a panel for each activation, with marks at σ_b = 0.

    Args:
      lines: activation → σ_w², σ_b² along its line.
      marks: name → smallest and largest σ_w².
      most: end of the axis of σ_w².
    """
    figure, grid = panels(1, len(lines), width=3.4)
    for axes, (name, (sigma_w2, sigma_b2)) in zip(grid[0], lines.items(), strict=True):
        if len(sigma_w2) > 1 and np.ptp(sigma_b2) > 1e-6:
            axes.plot(sigma_w2, sigma_b2, color="black", label="critical")
        elif len(sigma_w2) and sigma_w2[0] <= most:
            axes.plot(sigma_w2[:1], sigma_b2[:1], "*", color="black", markersize=11, label="critical", zorder=4)
        for i, (mark, span) in enumerate(marks.items()):
            axes.plot(np.mean(span), 0, MARKERS[i], color=f"C{i}", markersize=7, clip_on=False, zorder=5, label=mark)
            axes.axvspan(*span, color=f"C{i}", alpha=0.25, linewidth=0)
        axes.set(title=name, xlabel="$\\sigma_w^2$", ylabel="$\\sigma_b^2$", xlim=(0, most), ylim=(0, 1))
        axes.legend(loc="upper left")
    return figure


@styled
def standings(accuracy: dict[str, dict[str, Any]], first: str) -> Figure:
    """Mean and interval of the accuracy of every initializer, sorted, a panel for each activation.

    Args:
      accuracy: activation → initializer → (value, low, high).
      first: the initializer that is highlighted.
    """
    n = len(next(iter(accuracy.values())))
    figure, grid = panels(1, len(accuracy), width=3.6, height=0.24 * n + 0.6)
    for axes, (title, by_name) in zip(grid[0], accuracy.items(), strict=True):
        ranked = sorted(by_name.items(), key=lambda item: item[1][0])
        for y, (name, (value, low, high, *_)) in enumerate(ranked):
            colour = "C1" if name == first else "C0"
            axes.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=2)
        axes.set_yticks(range(n), [name for name, _ in ranked])
        for tick, (name, _) in zip(axes.get_yticklabels(), ranked, strict=True):
            tick.set_fontweight("bold" if name == first else "normal")
        axes.set(title=title, xlabel="validation accuracy", xlim=(0, 1))
    return figure
