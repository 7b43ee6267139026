"""Curves of theory on the heat map of a sweep: the trainable depth and the critical line."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from vgjax.config import Config, Hypers
from vgjax.initializers import is_data_dependent
from vgjax.sweeps.tables import edges, is_log_spaced, lanes
from vgjax.theory import profiles
from vgjax.theory.criticality import critical_point
from vgjax.theory.mean_field import fixed_point

DEPTH_SCALES = 6  # trainable depth in units of ξ_c (Schoenholz et al. 2016, 1611.01232)
WEIGHTS = {"sigma_w": 2, "sigma_w2": 1}  # coordinate → the power of it that is σ_w²
BIASES = {"sigma_b": 2, "sigma_b2": 1}


class Curve(NamedTuple):
    """A line of theory in a plane of two coordinates."""

    x: np.ndarray
    y: np.ndarray  # may be infinite or NaN; if the coordinates were swapped, so may x
    label: str


def theory_curve(
    history: xr.Dataset, x: str, y: str, config: Config, hypers: Hypers, n_points: int = 121
) -> Curve | None:
    """The trainable depth 6 ξ_c over (σ_w or σ_w²) × depth; the critical line over (σ_w or σ_w²) × (σ_b or σ_b²).

    Args:
      history: gives the range of the coordinates, the layers' widths, and the swept ones of activation, initializer,
        norm, branch, bias and σ_b.
      x, y: names of lane coordinates, in any order.
      config, hypers: base of the sweep; gives those of these fields that are not swept.
      n_points: number of points of the curve.

    Returns:
      None for other coordinates; with norms or branches; if lanes differ in one of these fields, or layers in
      fan_in·Var(W); or if the lengths have no fixed point anywhere.

    Source: Schoenholz et al. 2016, 1611.01232.
    """
    if x in ("depth", *BIASES) and y in WEIGHTS:
        found = theory_curve(history, y, x, config, hypers, n_points)
        return found and Curve(found.y, found.x, found.label)
    if x not in WEIGHTS or y not in ("depth", *BIASES):
        return None
    if (known := _network(history, config, hypers, is_sigma_b_fixed=y == "depth")) is None:
        return None
    activation, sigma_b2, gain = known
    table = lanes(history)
    power = WEIGHTS[x]
    if y == "depth":
        along = _dense(table[x], n_points)
        scales = [fixed_point(activation, gain * one**power, sigma_b2).xi_c for one in along]
        critical = (critical_point(activation, sigma_b2)[0] / gain) ** (1 / power)
        if along[0] <= critical <= along[-1]:  # the peak may lie between two points
            place = int(np.searchsorted(along, critical))
            along, scales = np.insert(along, place, critical), [*scales[:place], np.inf, *scales[place:]]
        curve = Curve(along, DEPTH_SCALES * np.array(scales), f"{DEPTH_SCALES} $\\xi_c$, theory")
    else:
        along = _dense(table[y], n_points)
        squares = [critical_point(activation, float(one))[0] / gain for one in along ** BIASES[y]]
        curve = Curve(np.array(squares) ** (1 / power), along, "critical line, theory")
    return curve if (~np.isnan(curve.x + curve.y)).sum() > 1 else None


def _network(
    history: xr.Dataset, config: Config, hypers: Hypers, is_sigma_b_fixed: bool
) -> tuple[str, float, float] | None:
    """Activation, σ_b² and fan_in·Var(W) of all lanes; None if lanes differ or theory does not cover the network."""
    base = {name: getattr(config, name) for name in ("activation", "initializer", "norm", "branch", "bias")}
    base["sigma_b"] = hypers.sigma_b
    table = lanes(history)
    swept = table[[name for name in base if name in table and (name != "sigma_b" or is_sigma_b_fixed)]]
    if (swept.nunique() > 1).any():
        return None
    base |= swept.iloc[0].to_dict()
    if base["norm"] != "none" or base["branch"] != "plain" or not (base["bias"] or is_sigma_b_fixed):
        return None
    gain = _gain(history, base["initializer"])
    return None if np.isnan(gain) else (base["activation"], base["sigma_b"] ** 2 if base["bias"] else 0.0, gain)


def _dense(column: pd.Series, n: int) -> np.ndarray:
    """n points over the range of a coordinate, in its spacing."""
    values = np.unique(column.to_numpy(np.float64))
    low, high = edges(values)[[0, -1]]
    return np.geomspace(low, high, n) if is_log_spaced(values) else np.linspace(max(low, 0.0), high, n)


def _gain(history: xr.Dataset, initializer: str) -> float:
    """fan_in·Var(W) of the layers between hidden layers; NaN if they differ or the initializer depends on data."""
    if is_data_dependent(initializer):
        return np.nan
    pairs = set()
    by_lane = xr.broadcast(history["fan_in"], history["fan_out"], history["seed"])[:2]
    for fan_in, fan_out in zip(*(fans.transpose("lane", "layer").values for fans in by_lane), strict=True):
        real = np.flatnonzero(~np.isnan(fan_in))
        pairs |= {(int(fan_in[i]), int(fan_out[i])) for i in real[1:-1]}
    variances = [profiles.layer_variances(pair, initializer)[0] for pair in pairs]
    return float(variances[0]) if variances and np.ptp(variances) <= 1e-6 * max(variances) else np.nan
