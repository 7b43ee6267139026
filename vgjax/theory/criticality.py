"""Where a network is critical: σ_w² and σ_b² at which depth neither shrinks nor grows the gradient."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from vgjax.activations import Activation
from vgjax.theory.gaussian import NOISE, SMALLEST
from vgjax.theory.mean_field import chi1, length_map


def critical_point(activation: str | Activation, sigma_b2: float = 0.0) -> tuple[float, float]:
    """The critical σ_w² at a given σ_b², and q* there: σ_w² = 1/E[φ'²] where σ_b² = q − E[φ²]/E[φ'²].

    Returns:
      (σ_w², q*) of smallest q* ≤ 10⁴ (0: the limit q → 0); NaN where there is none, as for ReLU with σ_b² > 0.

    Source: Schoenholz et al. 2016, 1611.01232; Hayou et al. 2019, 1902.06853.

    >>> round(critical_point("leaky_relu(0.2)")[0], 4)
    1.9231
    """

    def excess(log_q: ArrayLike) -> Any:
        q = np.exp(log_q)
        return 1 - (length_map(q, 1.0, 0.0, activation) / chi1(q, 1.0, activation) + sigma_b2) / q

    path = np.linspace(np.log(SMALLEST), np.log(1e4), 321)
    values = excess(path)
    if abs(values[0]) < NOISE:
        return 1 / float(chi1(0.0, 1.0, activation)), 0.0
    turned = np.flatnonzero(np.sign(values[0]) * values < -NOISE)
    if turned.size == 0:
        return np.nan, np.nan
    q = float(np.exp(brentq(excess, path[0], path[turned[0]], xtol=1e-14)))
    return 1 / float(chi1(q, 1.0, activation)), q


def critical_line(phi: str | Activation, most: float) -> tuple[np.ndarray, np.ndarray]:
    """σ_w² and σ_b² ≤ `most` at which χ₁ = 1, along q* from 0 on: σ_w² = 1/E[φ'²], σ_b² = q − E[φ²]/E[φ'²]."""
    q = np.concatenate([[0.0], np.geomspace(1e-4, 1e4, 400)])
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma_w2 = 1 / np.asarray(chi1(q, 1.0, phi))
        sigma_b2 = q - sigma_w2 * length_map(q, 1.0, 0.0, phi)
    allowed = np.isfinite(sigma_b2) & (sigma_b2 > -1e-9) & (sigma_b2 <= most)
    return sigma_w2[allowed], np.maximum(sigma_b2[allowed], 0)


SIGMAS = np.geomspace(1e-2, 1e4, 241)


@lru_cache(maxsize=256)
def critical_variance(activation: Any, depth: int) -> float:
    """σ_w² at which χ₁ multiplied over the hidden layers is 1, for inputs of RMS 1 and no biases.

    In deep networks this is `vgjax.theory.critical_point`, except where that is none for signals of order 1, as for
    GELU, whose length map is unstable there.

    Args:
      activation: name, import path or callable.
      depth: hidden layers.

    >>> round(critical_variance("relu", 8), 3)
    2.0
    """
    q, growth = SIGMAS.copy(), np.zeros_like(SIGMAS)
    for _ in range(depth):
        growth += np.log(np.maximum(chi1(q, SIGMAS, activation), 1e-300))
        q = np.clip(length_map(q, SIGMAS, 0.0, activation), 1e-30, 1e30)
    above = np.flatnonzero(growth >= 0)
    if not above.size or above[0] == 0:
        raise ValueError(f"activation {activation!r} has no critical σ_w² from {SIGMAS[0]:g} to {SIGMAS[-1]:g}")
    i = slice(above[0] - 1, above[0] + 1)
    return float(np.exp(np.interp(0.0, growth[i], np.log(SIGMAS[i]))))
