"""The figures at initialization: they hold as they are, and no longer once engine or oracle have a fault."""

from __future__ import annotations

import importlib
from typing import Any

import faults
import numpy as np
import pytest

import vgjax.training.probe
from experiments.__main__ import EXPERIMENTS
from experiments.options import Options

pytestmark = pytest.mark.optimised  # wide networks, which compute for longer than they compile

# Experiment → where a smoke test is too small for every row to hold, what to change in its size; and its faults. Each
# fault of the engine, for which all networks are simulated again, is planted once; those of the oracle cost little.
TRIALS: dict[str, tuple[dict[str, Any], tuple[faults.Fault, ...]]] = {
    "schoenholz_gradients": (
        {"depth": 240, "width": 300, "seeds": 4, "draws": 16},
        (faults.chi1_too_large, faults.weights_too_large),
    ),
    "poole_maps": (
        {"width": 1000, "seeds": 20, "sigmas": (1.3, 2.5)},
        (faults.chi1_too_large, faults.no_biases),
    ),
    "glorot_histograms": ({}, (faults.slopes_too_steep,)),
    "yang_batch_norm": (
        {},
        (faults.batch_norm_gain_too_large, faults.statistics_held_fast, faults.running_averages),
    ),
    "lu_dying_relu": ({}, (faults.dead_too_seldom, faults.weights_lean_to_one_side)),
    "hanin_widths": ({}, (faults.all_units_active, faults.leaky_units)),
    "pennington_spectrum": ({}, (faults.all_units_active,)),
    "balduzzi_shattering": ({}, (faults.angles_that_stay,)),
    "selu_fixed_point": (
        {},
        (faults.chi1_too_large, faults.second_moment_too_large, faults.relu_in_the_engine),
    ),
    "hayou_edge_of_chaos": ({}, (faults.chi_too_large, faults.curvature_too_large)),
    "tailored_relu": ({}, (faults.one_layer_less,)),
}


@pytest.fixture(autouse=True)
def fresh_programs() -> Any:
    """No program compiled with a fault serves another test."""
    vgjax.training.probe._program.cache_clear()
    yield
    vgjax.training.probe._program.cache_clear()


REMEMBERED: dict[tuple, Any] = {}


def remembering(*args: Any, **kwargs: Any) -> Any:
    """`probe`, which is not asked twice: a fault in the oracle changes nothing in the engine."""
    key = tuple(x.tobytes() if isinstance(x, np.ndarray) else repr(x) for x in (*args, *kwargs.items()))
    if key not in REMEMBERED:
        REMEMBERED[key] = vgjax.training.probe.probe(*args, **kwargs)
    return REMEMBERED[key]


def simulated(name: str, fault: faults.Fault | None = None) -> tuple[Any, Any]:
    """An experiment, and its data at the size of its trial."""
    experiment = importlib.import_module(f"experiments.{name}")
    with pytest.MonkeyPatch.context() as patch:
        if fault is None or fault in faults.OF_THE_ORACLE:
            patch.setattr(experiment, "probe", remembering)
        if changes := TRIALS[name][0]:
            patch.setitem(experiment.SIZES, "smoke", experiment.SIZES["smoke"]._replace(**changes))
        return experiment, experiment.run(Options(smoke=True))


def differing(experiment: Any, data: Any) -> list[str]:
    """The rows that differ."""
    return [f"{row.quantity}: {row.measured}" for row in experiment.check(data) if row.verdict != "reproduced"]


@pytest.fixture(scope="module", params=TRIALS)
def healthy(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Each experiment as it is."""
    return simulated(request.param)


def test_every_experiment_is_run() -> None:
    """Here, or through the command in test_experiments.py."""
    assert {*TRIALS, "mxnet_mnist", "keras_notebook"} == set(EXPERIMENTS)


def test_holds_without_a_fault(healthy: tuple) -> None:
    """Every row, so that the test below says something."""
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
    [(name, fault) for name, (_, planted) in TRIALS.items() for fault in planted],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_fault_is_seen(name: str, fault: faults.Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one row differs."""
    fault(monkeypatch)
    assert differing(*simulated(name, fault))
