"""Theory's curves over the plane of a sweep's map: the trainable depth and the critical line."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from vgjax.config import Config, Hypers
from vgjax.initializers import is_data_dependent
from vgjax.sweeps.maps import edges, is_log_spaced, lanes
from vgjax.theory import profiles
from vgjax.theory.criticality import critical_point
from vgjax.theory.mean_field import fixed_point

CROSSED = 6  # depth scales that a trainable network spans (Schoenholz et al. 2016, 1611.01232)
WEIGHTS = {"sigma_w": 2, "sigma_w2": 1}  # coordinate → the power of it that is σ_w²
BIASES = {"sigma_b": 2, "sigma_b2": 1}


class Curve(NamedTuple):
    """A line that theory knows in a plane of two coordinates."""

    x: np.ndarray
    y: np.ndarray  # may be infinite, or NaN where there is none; so may x in swapped orientation
    label: str


def theory_curve(
    history: xr.Dataset, x: str, y: str, config: Config, hypers: Hypers, n_points: int = 121
) -> Curve | None:
    """Over (σ_w or σ_w²) × depth, the trainable depth 6 ξ_c; over (σ_w or σ_w²) × (σ_b or σ_b²), the critical line.

    Args:
      history: gives the range of the coordinates, the layers' widths, and whatever its lanes say otherwise than the
        base: activation, initializer, norm, branch, bias, σ_b.
      x, y: names of lane coordinates, either way round.
      config, hypers: base of the sweep.
      n_points: of the curve.

    Returns:
      None in another plane; with norms or branches; where lanes differ in any of the above, or layers in
      fan_in·Var(W); where no length settles anywhere.

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
        if along[0] <= critical <= along[-1]:  # between two points, the peak would be cut off
            place = int(np.searchsorted(along, critical))
            along, scales = np.insert(along, place, critical), [*scales[:place], np.inf, *scales[place:]]
        curve = Curve(along, CROSSED * np.array(scales), f"{CROSSED} $\\xi_c$, theory")
    else:
        along = _dense(table[y], n_points)
        squares = [critical_point(activation, float(one))[0] / gain for one in along ** BIASES[y]]
        curve = Curve(np.array(squares) ** (1 / power), along, "critical line, theory")
    return curve if (~np.isnan(curve.x + curve.y)).sum() > 1 else None


def _network(
    history: xr.Dataset, config: Config, hypers: Hypers, is_sigma_b_fixed: bool
) -> tuple[str, float, float] | None:
    """Activation, σ_b² and fan_in·Var(W) that all lanes share; None where they do not, or theory's maps do not hold."""
    base = {name: getattr(config, name) for name in ("activation", "initializer", "norm", "branch", "bias")}
    base["sigma_b"] = hypers.sigma_b
    table = lanes(history)
    said = table[[name for name in base if name in table and (name != "sigma_b" or is_sigma_b_fixed)]]
    if (said.nunique() > 1).any():
        return None
    base |= said.iloc[0].to_dict()
    if base["norm"] != "none" or base["branch"] != "plain" or not (base["bias"] or is_sigma_b_fixed):
        return None
    gain = _gain(history, base["initializer"])
    return None if np.isnan(gain) else (base["activation"], base["sigma_b"] ** 2 if base["bias"] else 0.0, gain)


def _dense(column: pd.Series, n: int) -> np.ndarray:
    values = np.unique(column.to_numpy(np.float64))
    low, high = edges(values)[[0, -1]]
    return np.geomspace(low, high, n) if is_log_spaced(values) else np.linspace(max(low, 0.0), high, n)


def _gain(history: xr.Dataset, initializer: str) -> float:
    """fan_in·Var(W) of the layers between hidden ones, NaN where they differ or a batch decides."""
    if is_data_dependent(initializer):
        return np.nan
    pairs = set()
    by_lane = xr.broadcast(history["fan_in"], history["fan_out"], history["seed"])[:2]
    for fan_in, fan_out in zip(*(fans.transpose("lane", "layer").values for fans in by_lane), strict=True):
        real = np.flatnonzero(~np.isnan(fan_in))
        pairs |= {(int(fan_in[i]), int(fan_out[i])) for i in real[1:-1]}
    variances = [profiles.layer_variances(pair, initializer)[0] for pair in pairs]
    return float(variances[0]) if variances and np.ptp(variances) <= 1e-6 * max(variances) else np.nan
