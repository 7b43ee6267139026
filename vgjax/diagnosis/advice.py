"""What to try: weights that keep the gradient's length, and how numbers are rounded in advice."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.activations import SATURATED_SLOPE, activation, steepest_slope
from vgjax.diagnosis.case import SATURATED, Case
from vgjax.names import text_of


def saturates(named: Any) -> bool:
    """Whether the activation is flat for large negative and for large positive inputs."""
    phi = activation(named)
    slopes = jax.vmap(jax.grad(lambda x: phi(x)))(jnp.array([-20.0, 20.0], jnp.float32))
    return bool(jnp.all(jnp.abs(slopes) <= SATURATED_SLOPE * steepest_slope(named)))


def needed_gain(case: Case) -> float:
    """The σ_w that keeps δ's length: the critical one, or 1 if the critical network is saturated itself."""
    reference = case.reference
    share = float(reference.draws["saturated_fraction"].sel(layer=case.hidden).mean())
    return 1.0 if saturates(case.config.activation) and share > SATURATED / 2 else float(np.sqrt(reference.sigma_w2))


def initializer_advice(case: Case) -> str:
    """Recommend weights that keep the gradient's length, or another activation if no weights do."""
    name, critical, here = text_of(case.config.activation), case.reference.sigma_w2, ""
    if case.sigma_w2:
        low, high = (f"{value:.2g}" for value in case.sigma_w2)
        here = f"σ_w² is {low if low == high else f'{low}–{high}'} here; "
    values = f"{here}the critical value for {name} at this depth is {critical:.3g}"
    if needed_gain(case) != float(np.sqrt(critical)):
        return f"{values}, which saturates the units: use tanh or relu with he_normal"
    if abs(critical - 2) < 0.05:
        return f"{values}: use he_normal"
    return f"{values}: use the initializer mean_field with --sigma-w {np.sqrt(critical):.3g}"


def rounded(value: float) -> str:
    """One significant digit."""
    return f"{value:.1g}"
