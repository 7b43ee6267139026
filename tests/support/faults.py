"""Faults to be planted in the oracle or in the engine: each by what it does to a `pytest.MonkeyPatch`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import flax.linen.normalization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax.network.model
import vgjax.training.probe
from experiments import hanin_widths, pennington_spectrum
from vgjax import theory
from vgjax.theory import jacobian, profiles

Fault = Callable[[pytest.MonkeyPatch], None]


def chi1_too_large(patch: pytest.MonkeyPatch) -> None:
    """In the oracle."""
    right = theory.chi1
    _in_theory(patch, "chi1", lambda *args: 1.05 * right(*args))


def no_biases(patch: pytest.MonkeyPatch) -> None:
    """In the engine."""
    draw = vgjax.training.probe.initial_variables
    patch.setattr(vgjax.training.probe, "initial_variables", lambda *args: _changed(draw(*args), "bias", 0.0))


def weights_too_large(patch: pytest.MonkeyPatch) -> None:
    """In the engine: Var(W) 10 % above what was asked for."""
    draw = vgjax.training.probe.initial_variables
    patch.setattr(vgjax.training.probe, "initial_variables", lambda *args: _changed(draw(*args), "kernel", 1.1**0.5))


def chi_too_large(patch: pytest.MonkeyPatch) -> None:
    """In the oracle: the slope of the correlation map, of which ξ_c is made."""
    right = theory.chi
    _in_theory(patch, "chi", lambda *args: 1.05 * right(*args))


def curvature_too_large(patch: pytest.MonkeyPatch) -> None:
    """In the oracle."""
    right = theory.curvature
    _in_theory(patch, "curvature", lambda *args: 1.1 * right(*args))


def second_moment_too_large(patch: pytest.MonkeyPatch) -> None:
    """In the oracle: E[φ²] by .1 %."""
    right = theory.moment
    _in_theory(patch, "moment", lambda power, *args: (1.001 if power == 2 else 1) * right(power, *args))


def one_layer_less(patch: pytest.MonkeyPatch) -> None:
    """In the oracle: the slope is tailored to another depth."""
    right = theory.tailored_slope
    _in_theory(patch, "tailored_slope", lambda layers, target: right(layers - 1, target))


def relu_in_the_engine(patch: pytest.MonkeyPatch) -> None:
    """Whatever was asked for."""
    patch.setattr(vgjax.network.model, "activation", lambda named: jax.nn.relu)


def weights_lean_to_one_side(patch: pytest.MonkeyPatch) -> None:
    """In the engine: a tenth of each weight's size is added to it, so that positive ones are the larger."""
    draw = vgjax.training.probe.initial_variables
    patch.setattr(
        vgjax.training.probe,
        "initial_variables",
        lambda *args: _mapped(draw(*args), "kernel", lambda w: w + 0.1 * abs(w)),
    )


def slopes_too_steep(patch: pytest.MonkeyPatch) -> None:
    """In the oracle."""
    right = profiles.slope_product
    patch.setattr(profiles, "slope_product", lambda *args: 1.05 * right(*args))


def dead_too_seldom(patch: pytest.MonkeyPatch) -> None:
    """In the oracle."""
    right = profiles.dead_probability
    patch.setattr(profiles, "dead_probability", lambda widths: right(np.add(widths, 0.2)))


def batch_norm_gain_too_large(patch: pytest.MonkeyPatch) -> None:
    """In the oracle."""
    right = theory.finite_batch_norm_gradient_gain
    _in_theory(patch, "finite_batch_norm_gradient_gain", lambda *args: 1.1 * right(*args))


def statistics_held_fast(patch: pytest.MonkeyPatch) -> None:
    """In the engine: no gradient goes through the batch's statistics."""
    right = flax.linen.normalization._compute_stats
    patch.setattr(
        flax.linen.normalization, "_compute_stats", lambda *args, **kw: jax.lax.stop_gradient(right(*args, **kw))
    )


def running_averages(patch: pytest.MonkeyPatch) -> None:
    """In the engine: batch norm does not look at the batch."""
    right = vgjax.network.model._normalise
    patch.setattr(
        vgjax.network.model, "_normalise", lambda home, name, x, train, mask: right(home, name, x, False, mask)
    )


def leaky_units(patch: pytest.MonkeyPatch) -> None:
    """In the engine: units that are off let a third through."""
    patch.setattr(vgjax.network.model, "activation", lambda named: lambda z: jnp.where(z > 0, z, z / 3))


def all_units_active(patch: pytest.MonkeyPatch) -> None:
    """In the oracle: 2/n where it is 5/n, 1 where it is 2."""
    for name in ("fourth_moment_growth", "log_length_variance", "eigenvalue_spread"):
        for experiment in (hanin_widths, pennington_spectrum):
            right = getattr(jacobian, name)
            patch.setattr(experiment, name, lambda n, *more, right=right: right(n, 1.0, *more[1:]), raising=False)


def angles_that_stay(patch: pytest.MonkeyPatch) -> None:
    """In the oracle: inputs that become no more alike from layer to layer."""
    patch.setattr(jacobian, "product", lambda q1, q2, c, _: np.sqrt(q1 * q2) * c / 2)


OF_THE_ORACLE = (
    *(chi1_too_large, chi_too_large, curvature_too_large, second_moment_too_large, one_layer_less, slopes_too_steep),
    *(dead_too_seldom, batch_norm_gain_too_large, all_units_active, angles_that_stay),
)


def _in_theory(patch: pytest.MonkeyPatch, name: str, changed: Callable[..., Any]) -> None:
    """A function of the theory changed, wherever it has been imported."""
    for module in (theory, *(module for where, module in sys.modules.items() if where.startswith("vgjax.theory."))):
        if name in vars(module):
            patch.setattr(module, name, changed)


def _changed(variables: Any, leaf: str, factor: float) -> Any:
    return _mapped(variables, leaf, lambda x: factor * x)


def _mapped(variables: Any, leaf: str, change: Callable[[Any], Any]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, x: change(x) if path[-1].key == leaf else x, variables)
