"""Every family of statistics, of one step, against back-propagation in float64 NumPy; and stacks against layers."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import small
from event_files import read_events, values_of
from numpy_statistics import numpy_counts
from reference import ACTIVATIONS

import vgjax
from vgjax.activations import steepest_slope
from vgjax.command.cli import main
from vgjax.config import Config, Hypers
from vgjax.data.batches import Batch
from vgjax.network import model
from vgjax.network.layer_names import weight_groups
from vgjax.network.model import initial_variables, stacks
from vgjax.statistics.families import FAMILIES, LAYER, Family, Statistic, all_statistics, chosen, kept, statistics_of
from vgjax.sweeps import tables
from vgjax.training import history
from vgjax.training.loop import run
from vgjax.training.optim import make_optimizer
from vgjax.training.parallel import Layout
from vgjax.training.step import Lane, Program, State, record, train_step

FEATURES, CLASSES, EXAMPLES = 7, 4, 24
HYPERS = Hypers(learning_rate=0.2, clip_threshold=0.004, weight_decay=0.1)
FEW = {"record": ("norms", "decay", "points", "delta_histogram")}  # families, which compile faster than all


def config_of(**changes):
    common = Config(
        hidden=(9, 8, 8),
        activation="tanh",
        initializer="glorot_normal",
        clip="value",
        record=("all",),
        optimizer="adam",
    )
    return dataclasses.replace(common, **changes)


def step_of(config, inputs, labels, mask=None):
    """One step as a function from the weights to its record and the weights after it."""
    program = Program(config, CLASSES, len(labels), Layout(1, "lanes"))

    def step(variables):
        lane = Lane(HYPERS, jax.random.key(0), jnp.int32(0))
        tx = make_optimizer(config, HYPERS, 10)
        state, outcome, view = train_step(
            program, lane, State(variables, tx.init(variables["params"])), Batch(inputs, labels, mask)
        )
        return record(program, outcome, view), state.variables["params"]

    return step


def one_record(config, inputs, labels, mask=None):
    """The record of one step from drawn weights, the weights, and what the step added to them."""
    variables = initial_variables(config, CLASSES, Hypers(sigma_b=0.3), jax.random.key(3), inputs[:2])
    found, after = jax.jit(step_of(config, inputs, labels, mask))(variables)
    params = model.unstacked(variables["params"])
    return jax.tree.map(np.asarray, found), params, model.unstacked(after)


def expected(config, params, after, inputs, labels):
    """The same record in float64, layer by layer and example by example."""
    phi, slope = ACTIVATIONS[config.activation.partition("(")[0]]
    depth = len(config.hidden) + 1
    w = [np.asarray(params[f"layer_{i}"]["kernel"], np.float64) for i in range(1, depth + 1)]
    b = [np.asarray(params[f"layer_{i}"]["bias"], np.float64) for i in range(1, depth + 1)]
    moved = [np.asarray(after[f"layer_{i}"]["kernel"], np.float64) - w[i - 1] for i in range(1, depth + 1)]
    x, z, h = [], [], np.asarray(inputs, np.float64)
    for i in range(depth):
        x.append(h)
        z.append(h @ w[i] + b[i])
        h = phi(z[-1]) if i < depth - 1 else z[-1]
    p = np.exp(z[-1] - z[-1].max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    delta = [None] * depth
    delta[-1] = (p - np.eye(CLASSES)[np.asarray(labels)]) / len(labels)
    slopes = [slope(one) for one in z[:-1]] + [np.ones_like(z[-1])]
    for i in reversed(range(depth - 1)):
        delta[i] = (delta[i + 1] @ w[i + 1].T) * slopes[i]
    top = [steepest_slope(config.activation)] * (depth - 1) + [1.0]
    activations = [phi(one) for one in z[:-1]] + [z[-1]]
    n = len(labels)
    rows = []
    for i in range(depth):
        each = n * np.einsum("bi,bj->bij", x[i], delta[i])  # every example's own gradient
        g = each.mean(0)
        c = np.clip(g, -HYPERS.clip_threshold, HYPERS.clip_threshold)
        variance = each.var(0, ddof=1).sum() / n
        ratio, gain, steepness = np.nan, np.nan, np.nan
        if i < depth - 1:
            ratio = np.linalg.norm(delta[i]) / np.linalg.norm(delta[i + 1])
            gain = np.sqrt((w[i + 1] ** 2).sum() / w[i + 1].shape[1])
            steepness = np.sqrt((slopes[i] ** 2).mean())
        rows.append(
            {
                "gradient_norm": np.linalg.norm(g),
                "gradient_rms": np.sqrt((g**2).mean()),
                "gradient_log10_rms": np.log10((g**2).mean()) / 2,
                "gradient_mean": g.mean(),
                "gradient_std": g.std(),
                "gradient_max": np.abs(g).max(),
                "gradient_zero_fraction": (g == 0).mean(),
                "gradient_float16_underflow": ((g != 0) & (np.abs(g) <= 2.0**-25)).sum() / (g != 0).sum(),
                "gradient_bfloat16_underflow": ((g != 0) & (np.abs(g) <= 2.0**-134)).sum() / (g != 0).sum(),
                "gradient_signal_to_noise": (g**2).sum() / variance,
                "weight_norm": np.linalg.norm(w[i]),
                "update_ratio": np.linalg.norm(moved[i]) / np.linalg.norm(w[i]),
                "clipped_norm": np.linalg.norm(c),
                "clipped_fraction": (c != g).mean(),
                "clipped_cosine": (c * g).sum() / np.linalg.norm(c) / np.linalg.norm(g),
                "update_norm": np.linalg.norm(moved[i]),
                "update_cosine": -(moved[i] * g).sum() / np.linalg.norm(moved[i]) / np.linalg.norm(g),
                "activation_mean": activations[i].mean(),
                "activation_std": activations[i].std(),
                "activation_dead_fraction": (slopes[i] == 0).all(0).mean(),
                "activation_saturated_fraction": (np.abs(slopes[i]) <= 0.1 * top[i]).mean(),
                "delta_norm": np.linalg.norm(delta[i]),
                "delta_rms": np.sqrt((delta[i] ** 2).mean()),
                "delta_log10_rms": np.log10((delta[i] ** 2).mean()) / 2,
                "decay_ratio": ratio,
                "decay_weight_gain": gain,
                "decay_slope": steepness,
                "decay_alignment": ratio / gain / steepness,
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, (w, moved, activations, delta)


def batch(scale=1.0):
    rng = np.random.default_rng(1)
    inputs = (rng.normal(size=(EXAMPLES, FEATURES)) * scale).astype(np.float32)
    return jnp.asarray(inputs), jnp.asarray(rng.integers(CLASSES, size=EXAMPLES), jnp.int32)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(("name", "masked"), [("tanh", False), ("relu", True), ("sigmoid", True), ("gelu", False)])
def test_every_statistic_against_float64(name, masked):
    """All families of one step; with a mask, the last examples count nowhere."""
    inputs, labels = batch(3.0)  # wide enough to saturate some units
    mask = jnp.arange(EXAMPLES) < 17 if masked else None
    used = slice(17) if masked else slice(None)
    config = config_of(activation=name)
    found, params, after = one_record(config, inputs, labels, mask)
    want, (w, moved, activations, delta) = expected(config, params, after, inputs[used], labels[used])
    assert set(want) == {name for name in all_statistics() if not name.endswith("histogram")}
    for statistic, values in want.items():
        tolerance = {"rtol": 3e-4 if statistic.startswith("update") else 3e-5, "atol": 0}
        if statistic == "gradient_mean":  # a difference of large numbers
            tolerance["atol"] = 1e-6 * want["gradient_std"].max()
        np.testing.assert_allclose(found[statistic], values, err_msg=statistic, **tolerance)
    rows = {"activation_histogram": activations, "delta_histogram": delta, "weight_histogram": w}
    for histogram, arrays in rows.items():
        for have, array in zip(found[histogram], arrays, strict=True):
            assert have.sum() == array.size
            assert np.abs(have - numpy_counts(array.astype(np.float32))).sum() <= 2, histogram  # rounding at an edge
    for histogram, arrays in (("gradient_histogram", w), ("update_histogram", moved)):
        assert found[histogram].sum(1).tolist() == [array.size for array in arrays]


@pytest.mark.slow
def test_alignment_of_independent_directions_is_one():
    """A wide random linear network: ratio = gain · slope, and the square of the ratio is σ_w²."""
    config = config_of(hidden=(600, 600, 600), activation="linear", initializer="normal(0.06)", clip="none")
    found, _, _ = one_record(config, *batch())
    np.testing.assert_allclose(found["decay_alignment"][:2], 1, rtol=0.05)
    np.testing.assert_allclose(found["decay_ratio"][:2] ** 2, 600 * 0.06**2, rtol=0.1)


@pytest.mark.slow
def test_dead_and_saturated_units():
    """A bias far below zero kills every ReLU and saturates every tanh."""
    for name in ("relu", "tanh"):
        config = config_of(activation=name, initializer="normal(0.001)", record=("activations",))
        inputs, labels = batch()
        variables = initial_variables(config, CLASSES, Hypers(), jax.random.key(3), inputs)
        bias = variables["params"]["layer_1"]["bias"].at[:3].set(-50.0)
        variables["params"]["layer_1"]["bias"] = bias
        found, _ = jax.jit(step_of(config, inputs, labels))(variables)
        assert float(found["activation_dead_fraction"][0]) == pytest.approx(3 / 9)
        if name == "tanh":
            assert float(found["activation_saturated_fraction"][0]) == pytest.approx(3 / 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layer", "branch": "rezero", "activation": "relu"},
        {"norm": "batch", "norm_at": "layer_inputs", "branch": "residual", "bias": False} | FEW,
        {"decay": "l2", "optimizer": "momentum", "clip": "global_norm", "initializer": "orthogonal"} | FEW,
    ],
    ids=str,
)
def test_a_stack_is_its_layers(monkeypatch, changes):
    """Scanned or not: the same draws, statistics and trained weights, whatever norm, branch, decay and clipping."""
    config = config_of(hidden=(12, *[10] * 4, 6), **changes)
    monkeypatch.setattr(model, "SHORTEST_STACK", 3)
    assert stacks(config) == [(3, 5)]
    stacked, drawn, after = one_record(config, *batch())
    monkeypatch.setattr(model, "SHORTEST_STACK", 100)
    assert stacks(config) == []
    single, drawn_singly, after_singly = one_record(config, *batch())
    assert set(drawn) == set(drawn_singly) and "layer_4" in drawn
    close = partial(np.testing.assert_allclose, rtol=1e-6)  # a scan rounds otherwise
    jax.tree.map(close, drawn, drawn_singly)
    jax.tree.map(partial(close, rtol=2e-3, atol=1e-6), after, after_singly)
    assert set(single) == set(stacked)
    for name, values in single.items():
        if name.endswith("histogram"):
            assert np.abs(values - stacked[name]).sum() <= 0.01 * values.sum(), name
        elif name != "gradient_mean" and (name != "update_cosine" or config.optimizer != "adam"):
            np.testing.assert_allclose(stacked[name], values, rtol=2e-3, atol=1e-6, err_msg=name)


def test_what_keeps_layers_apart():
    """Clipping by layer or unit, data-dependent initializers and strangers' optimizers see single layers."""
    deep = (8,) * 20
    assert stacks(config_of(hidden=deep)) == [(2, 20)]
    assert stacks(config_of(hidden=(8,) * 12)) == []
    assert stacks(config_of(hidden=(16, *deep, 4, *deep))) == [(3, 21), (24, 42)]
    for changes in ({"clip": "agc"}, {"clip": "layer_norm"}, {"initializer": "lsuv"}, {"optimizer": "optax:lion"}):
        assert stacks(config_of(hidden=deep, **changes)) == []


@pytest.mark.slow
def test_depth_does_not_change_the_draws():
    """A layer's weights depend on the seed and its own name, stacked or not."""
    inputs = jnp.zeros((2, 8))
    drawn = [
        model.unstacked(
            initial_variables(config_of(hidden=(8,) * depth), 3, Hypers(), jax.random.key(0), inputs)["params"]
        )
        for depth in (4, 30)
    ]
    for i in range(1, 5):
        np.testing.assert_array_equal(drawn[0][f"layer_{i}"]["kernel"], drawn[1][f"layer_{i}"]["kernel"])
    assert not np.allclose(drawn[1]["layer_7"]["kernel"], drawn[1]["layer_8"]["kernel"])


@pytest.mark.slow
def test_what_is_recorded_is_chosen():
    """By family and by layer; nothing else is in the history."""
    config = dataclasses.replace(small.CONFIG, record=("norms", "decay"), record_layers=("layer_[12]",))
    found = run(config, dataset=small.dataset()).history
    assert found["layer"].values.tolist() == ["layer_1", "layer_2"] and found["fan_in"].values.tolist() == [5, 8]
    per_layer = {name for name, v in found.data_vars.items() if "layer" in v.dims}
    assert per_layer == {one.name for one in statistics_of(["norms", "decay"])}
    whole = run(dataclasses.replace(config, record_layers=("*",)), dataset=small.dataset()).history
    np.testing.assert_allclose(found["decay_ratio"], whole["decay_ratio"][..., :2], rtol=1e-6)
    assert np.isnan(whole["decay_ratio"][..., -1]).all() and np.isfinite(found["decay_ratio"]).all()


def test_nothing_recorded_but_losses():
    found = run(dataclasses.replace(small.CONFIG, record=()), dataset=small.dataset()).history
    assert not [name for name, v in found.data_vars.items() if "layer" in v.dims] and "loss" in found


@pytest.mark.slow
def test_each_family_computes_what_its_row_declares():
    """Names and dimensions; and no two families declare the same name."""
    declared = statistics_of(FAMILIES)
    assert len({one.name for one in declared}) == len(declared) and chosen(["all"]) == list(FAMILIES)
    assert not {one.name for one in declared} & set(history.RUN_VARIABLES)
    inputs, labels = batch()
    variables = jax.eval_shape(lambda: initial_variables(config_of(), CLASSES, Hypers(), jax.random.key(3), inputs[:2]))
    for name, family in FAMILIES.items():
        found, _ = jax.eval_shape(step_of(config_of(record=(name,)), inputs, labels), variables)
        want = {one.name: len(one.dims) for one in family.statistics}
        assert {n: values.ndim for n, values in found.items() if n not in ("loss", "accuracy")} == want, name


def _quantiles(config, view, stacked):
    groups = weight_groups(view.gradients, stacked)
    return {"gradient_median": jnp.stack([jnp.median(jnp.abs(group.values)) for group in groups])}


QUANTILES = Family(
    _quantiles,
    "median of the weight gradient",
    "a test",
    (Statistic("gradient_median", LAYER, "median |g| of the weight gradient", "loss per weight unit"),),
    from_outside=True,
)


@pytest.mark.slow
def test_a_new_family_is_one_function_and_one_row(monkeypatch, tmp_path, capsys):
    """Its statistic is in the history, the tables, TensorBoard, the list, the maps and a watched optimizer."""
    monkeypatch.setitem(FAMILIES, "quantiles", QUANTILES)
    config = dataclasses.replace(small.CONFIG, record=("quantiles",))
    found = run(config, dataset=small.dataset(), folder=tmp_path / "run").history["gradient_median"]
    assert found.dims == ("lane", "record", "layer") and (found > 0).all()
    assert found.attrs == {"long_name": "median |g| of the weight gradient [loss per weight unit]"}
    table = pd.read_csv(tmp_path / "run" / "statistics.csv")
    np.testing.assert_allclose(table["gradient_median"], found.values.ravel(), rtol=1e-6)
    layer_1 = read_events(tmp_path / "run")["lane_000_seed_0/layer_1"]
    written = [value for _, value in values_of(layer_1, "gradient/median")]
    np.testing.assert_array_equal(np.array(written), found.values[0, :, 0])
    assert main(["list", "families"]) == 0
    assert "median of the weight gradient" in capsys.readouterr().out
    assert tables.parse_plot("seed,gradient_median", ["seed"]).value == "gradient_median"
    params = {"dense": jnp.ones((2, 2))}
    state = vgjax.watch(optax.sgd(1.0), record="quantiles").init(params)
    assert list(vgjax.scalars(state)) == ["gradient/median/dense"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"record": ("norm",)}, "unknown family 'norm' in record; did you mean 'norms'"),
        ({"record_layers": ("layr_1",)}, "fits no layer; did you mean 'layer_1'"),
        ({"cadence": "at(9)"}, "names no step of this run; allowed: 0 to 8"),
    ],
)
def test_refused(changes, message, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(small.CONFIG, **changes), dataset=small.dataset(), folder=folder)
    assert not folder.exists()
    assert kept(small.CONFIG, ["layer_1", "layer_2"]) == [0, 1]
