"""What `python -m experiments.benchmark` is to show: ratios of seconds, their intervals and what they should be."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

LANES, IRIS_LANES = 8, 256


class Goal(NamedTuple):
    """A ratio that is measured, and what it should be."""

    name: str
    what: str
    over: str  # the time below the line
    under: str = "bare"
    at_most: float | None = None
    at_least: float | None = None
    per: float = 1.0  # runs above the line for one below it

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
        per=LANES,
    ),
    Goal(
        "iris_runs_vs_pytorch",
        "Iris runs a second, times PyTorch's",
        "torch_iris",
        "iris",
        at_least=15,
        per=1 / IRIS_LANES,
    ),
    Goal(
        "iris_runs_vs_keras",
        "Iris runs a second, times Keras's",
        "keras_iris",
        "iris",
        at_least=300,
        per=1 / IRIS_LANES,
    ),
    Goal(
        "eight_lanes_vs_one_after_other",
        "runs a second of eight lanes, times those of one after the other",
        "norms",
        "lanes",
        at_least=1.25,
        per=1 / LANES,
    ),
    Goal(
        "iris_64_lanes_vs_one_after_other",
        "the same of 64 Iris lanes",
        "iris_one",
        "iris_64",
        at_least=1.7,
        per=1 / 64,
    ),
    Goal(
        "iris_256_lanes_vs_one_after_other",
        "the same of 256 Iris lanes",
        "iris_one",
        "iris",
        at_least=1.7,
        per=1 / IRIS_LANES,
    ),
    Goal("matmul_floor_share", "the matrix products alone, over the bare run", "matmul", at_least=0.7),
    Goal("compile_depth_240_vs_8", "first step of 240 layers, over that of 8", "deep", "shallow", at_most=2.0),
    Goal("pytorch_norms", "PyTorch with norms, over PyTorch bare", "torch_norms", "torch"),
    Goal("pytorch_histograms", "PyTorch with TensorBoard histograms, over bare", "torch_histograms", "torch"),
    Goal("keras_bare_vs_pytorch", "Keras `fit`, over PyTorch bare", "keras", "torch"),
    Goal("keras_tensorboard", "Keras with its TensorBoard callback, over bare", "keras_tensorboard", "keras"),
)


def rows_of(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The ratios of all goals whose contestants took part."""
    rows: list[dict[str, Any]] = []
    for goal in GOALS:
        if goal.over not in seconds or goal.under not in seconds:
            rows.append({**_named(goal), "ratio": None, "low": None, "high": None, "met": None})
            continue
        ratio, low, high = _median(_turn_by_turn(seconds[goal.over], seconds[goal.under]) / goal.per)
        met = ratio <= (goal.at_most or np.inf) and ratio >= (goal.at_least or -np.inf)
        rows.append({**_named(goal), "ratio": ratio, "low": low, "high": high, "met": bool(met) if str(goal) else None})
    return rows


def _turn_by_turn(over: list[float], under: list[float]) -> np.ndarray:
    """Ratios of what was measured side by side; of several times a turn the median, where the other has but one."""
    turns = min(len(over), len(under))
    over_turn, under_turn = (np.median(np.reshape(values, (turns, -1)), axis=1) for values in (over, under))
    return over_turn / under_turn


def _named(goal: Goal) -> dict[str, Any]:
    return {"name": goal.name, "what": goal.what, "against": goal.under, "goal": str(goal)}


def _median(values: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % interval by order statistics; the whole range where the turns are too few for one."""
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
