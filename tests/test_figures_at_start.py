"""The figures at initialization: they hold as they are, and no longer once engine or oracle have a fault."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import flax.linen.normalization
import jax
import numpy as np
import pytest

import vgjax.model
import vgjax.probe
from experiments.options import Options
from vgjax import profiles, theory

Fault = Callable[[pytest.MonkeyPatch], None]


def chi1_too_large(patch: pytest.MonkeyPatch) -> None:
    """In the oracle."""
    right = theory.chi1
    patch.setattr(theory, "chi1", lambda *args: 1.05 * right(*args))


def no_biases(patch: pytest.MonkeyPatch) -> None:
    """In the engine."""
    draw = vgjax.probe.initial_variables
    patch.setattr(vgjax.probe, "initial_variables", lambda *args: _changed(draw(*args), "bias", 0.0))


def weights_too_large(patch: pytest.MonkeyPatch) -> None:
    """In the engine: Var(W) 10 % above what was asked for."""
    draw = vgjax.probe.initial_variables
    patch.setattr(vgjax.probe, "initial_variables", lambda *args: _changed(draw(*args), "kernel", 1.1**0.5))


def weights_lean_to_one_side(patch: pytest.MonkeyPatch) -> None:
    """In the engine: a tenth of each weight's size is added to it, so that positive ones are the larger."""
    draw = vgjax.probe.initial_variables
    patch.setattr(
        vgjax.probe, "initial_variables", lambda *args: _mapped(draw(*args), "kernel", lambda w: w + 0.1 * abs(w))
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
    patch.setattr(theory, "finite_batch_norm_gradient_gain", lambda *args: 1.1 * right(*args))


def statistics_held_fast(patch: pytest.MonkeyPatch) -> None:
    """In the engine: no gradient goes through the batch's statistics."""
    right = flax.linen.normalization._compute_stats
    patch.setattr(
        flax.linen.normalization, "_compute_stats", lambda *args, **kw: jax.lax.stop_gradient(right(*args, **kw))
    )


def running_averages(patch: pytest.MonkeyPatch) -> None:
    """In the engine: batch norm does not look at the batch."""
    right = vgjax.model._normalise
    patch.setattr(vgjax.model, "_normalise", lambda home, name, x, train, mask: right(home, name, x, False, mask))


def _changed(variables: Any, leaf: str, factor: float) -> Any:
    return _mapped(variables, leaf, lambda x: factor * x)


def _mapped(variables: Any, leaf: str, change: Callable[[Any], Any]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, x: change(x) if path[-1].key == leaf else x, variables)


FAULTS: dict[str, tuple[Fault, ...]] = {
    "glorot_histograms": (slopes_too_steep, weights_too_large),
    "schoenholz_gradients": (chi1_too_large, no_biases, weights_too_large),
    "poole_maps": (chi1_too_large, no_biases, weights_too_large),
    "yang_batch_norm": (batch_norm_gain_too_large, statistics_held_fast, running_averages),
    "lu_dying_relu": (dead_too_seldom, weights_lean_to_one_side),
}


@pytest.fixture(autouse=True)
def fresh_programs() -> Any:
    """No program compiled with a fault serves another test."""
    vgjax.probe._program.cache_clear()
    yield
    vgjax.probe._program.cache_clear()


def simulated(name: str) -> tuple[Any, Any]:
    """An experiment, and its data at smoke size."""
    experiment = importlib.import_module(f"experiments.{name}")
    return experiment, experiment.run(Options(smoke=True))


def differing(experiment: Any, data: Any) -> list[str]:
    """The rows that differ."""
    return [f"{row.quantity}: {row.measured}" for row in experiment.check(data) if row.verdict != "reproduced"]


@pytest.fixture(scope="module", params=FAULTS)
def healthy(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Each experiment as it is."""
    return simulated(request.param)


def test_holds_without_a_fault(healthy: tuple) -> None:
    """At smoke size too, so that the tests below say something."""
    assert differing(*healthy) == []


def test_figure_shows_simulation_and_theory(healthy: tuple) -> None:
    """In every panel theory's lines, points with intervals, and named axes; behind it a table without gaps."""
    experiment, data = healthy
    for picture in experiment.plot(data):
        for axes in picture.figure.axes:
            assert axes.get_xlabel() and axes.get_ylabel()
            assert any(line.get_linestyle() == "--" and len(line.get_xdata()) > 1 for line in axes.lines)
            assert axes.containers, "points with intervals"
        assert np.isfinite(picture.table.select_dtypes("number")).all(axis=None)
        assert picture.sentence.endswith(".")


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name, faults in FAULTS.items() for fault in faults],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_fault_is_seen(name: str, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one row differs."""
    fault(monkeypatch)
    assert differing(*simulated(name))
