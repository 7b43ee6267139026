"""The ratios that `python -m experiments.benchmark` reports, their intervals and the goals they are compared with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

LANES, IRIS_LANES = 8, 256


class Goal(NamedTuple):
    """A ratio of two contestants' seconds, and what it should be."""

    name: str
    what: str
    numerator: str  # a contestant of the benchmark
    denominator: str = "bare"
    at_most: float | None = None
    at_least: float | None = None
    runs: float = 1.0  # runs that the numerator's seconds hold, for one run in the denominator's

    def __str__(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"


GOALS = (
    Goal("norms_every_step", "norms of every layer's gradient, every step", "norms", at_most=1.03),
    Goal("histograms_every_10", "histogram of every weight gradient, every 10th step", "histograms_10", at_most=1.05),
    Goal("histograms_every_step", "the same, every step", "histograms", at_most=1.25),
    Goal("everything_every_10", "everything that can be recorded, every 10th step", "everything_10", at_most=1.15),
    Goal("one_lane_vs_pytorch", "one lane with norms, over PyTorch bare", "norms", "torch", at_most=0.95),
    Goal(
        "eight_lanes_vs_pytorch_per_lane",
        "a lane of eight, over PyTorch bare",
        "lanes",
        "torch",
        at_most=0.7,
        runs=LANES,
    ),
    Goal(
        "iris_runs_vs_pytorch",
        "Iris runs a second, times PyTorch's",
        "torch_iris",
        "iris",
        at_least=15,
        runs=1 / IRIS_LANES,
    ),
    Goal(
        "iris_runs_vs_keras",
        "Iris runs a second, times Keras's",
        "keras_iris",
        "iris",
        at_least=300,
        runs=1 / IRIS_LANES,
    ),
    Goal(
        "eight_lanes_vs_one_after_other",
        "runs a second of eight lanes, times those of one after the other",
        "norms",
        "lanes",
        at_least=1.25,
        runs=1 / LANES,
    ),
    Goal(
        "iris_64_lanes_vs_one_after_other",
        "the same of 64 Iris lanes",
        "iris_one",
        "iris_64",
        at_least=1.7,
        runs=1 / 64,
    ),
    Goal(
        "iris_256_lanes_vs_one_after_other",
        "the same of 256 Iris lanes",
        "iris_one",
        "iris",
        at_least=1.7,
        runs=1 / IRIS_LANES,
    ),
    Goal("matmul_floor_share", "the matrix products alone, over the bare run", "matmul", at_least=0.7),
    Goal("compile_depth_240_vs_8", "first step of 240 layers, over that of 8", "deep", "shallow", at_most=2.0),
    Goal("pytorch_norms", "PyTorch with norms, over PyTorch bare", "torch_norms", "torch"),
    Goal("pytorch_histograms", "PyTorch with TensorBoard histograms, over bare", "torch_histograms", "torch"),
    Goal("keras_bare_vs_pytorch", "Keras `fit`, over PyTorch bare", "keras", "torch"),
    Goal("keras_tensorboard", "Keras with its TensorBoard callback, over bare", "keras_tensorboard", "keras"),
)


def rows_of(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each goal: its ratio and interval, or None where a contestant did not take part."""
    rows: list[dict[str, Any]] = []
    for goal in GOALS:
        if goal.numerator not in seconds or goal.denominator not in seconds:
            rows.append({**_named(goal), "ratio": None, "low": None, "high": None, "met": None})
            continue
        ratio, low, high = _median(_turn_by_turn(seconds[goal.numerator], seconds[goal.denominator]) / goal.runs)
        met = ratio <= (goal.at_most or np.inf) and ratio >= (goal.at_least or -np.inf)
        rows.append({**_named(goal), "ratio": ratio, "low": low, "high": high, "met": bool(met) if str(goal) else None})
    return rows


def _turn_by_turn(numerator: list[float], denominator: list[float]) -> np.ndarray:
    """Ratios of times measured next to each other.

    Where one contestant ran more often than the other, the median of its times in a turn is taken.
    """
    turns = min(len(numerator), len(denominator))
    above, below = (np.median(np.reshape(values, (turns, -1)), axis=1) for values in (numerator, denominator))
    return above / below


def _named(goal: Goal) -> dict[str, Any]:
    return {"name": goal.name, "what": goal.what, "against": goal.denominator, "goal": str(goal)}


def _median(values: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % interval by order statistics; with too few values for one, their whole range."""
    from scipy.stats import quantile_test

    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    low, high = (
        float(x) if np.isfinite(x) else float(y) for x, y in zip(interval, (values.min(), values.max()), strict=True)
    )
    return float(np.median(values)), low, high


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | ratio | 95 % interval | goal |", "| --- | --- | --- | --- |"]
    for row in rows:
        shown = "not installed" if row["ratio"] is None else f"{row['ratio']:.4g}"
        interval = "" if row["ratio"] is None else f"{row['low']:.3g} … {row['high']:.3g}"
        goal = row["goal"] + {True: "", False: " (missed)", None: ""}[row["met"]]
        lines.append(f"| {row['what']} | {shown} | {interval} | {goal} |")
    return "\n".join(lines)
