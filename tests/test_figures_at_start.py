"""The figures at initialization: they hold as they are, and no longer once engine or oracle have a fault."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax.model
import vgjax.probe
from experiments import hanin_widths, pennington_spectrum
from experiments.options import Options
from vgjax import jacobian, theory

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


def leaky_units(patch: pytest.MonkeyPatch) -> None:
    """In the engine: units that are off let a third through."""
    patch.setattr(vgjax.model, "activation", lambda named: lambda z: jnp.where(z > 0, z, z / 3))


def all_units_active(patch: pytest.MonkeyPatch) -> None:
    """In the oracle: 2/n where it is 5/n, 1 where it is 2."""
    for name in ("fourth_moment_growth", "log_length_variance", "eigenvalue_spread"):
        for experiment in (hanin_widths, pennington_spectrum):
            right = getattr(jacobian, name)
            patch.setattr(experiment, name, lambda n, *more, right=right: right(n, 1.0, *more[1:]), raising=False)


def angles_that_stay(patch: pytest.MonkeyPatch) -> None:
    """In the oracle: inputs that become no more alike from layer to layer."""
    patch.setattr(jacobian, "product", lambda q1, q2, c, _: np.sqrt(q1 * q2) * c / 2)


def _changed(variables: Any, leaf: str, factor: float) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, x: factor * x if path[-1].key == leaf else x, variables)


FAULTS: dict[str, tuple[Fault, ...]] = {
    "schoenholz_gradients": (chi1_too_large, no_biases, weights_too_large),
    "poole_maps": (chi1_too_large, no_biases, weights_too_large),
    "hanin_widths": (all_units_active, leaky_units, weights_too_large),
    "pennington_spectrum": (all_units_active, leaky_units, weights_too_large),
    "balduzzi_shattering": (angles_that_stay, leaky_units),
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
