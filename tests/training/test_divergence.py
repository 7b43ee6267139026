"""A run that leaves the finite numbers: it ends in order, and says in which step, layer and pass that began."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
import xarray as xr
from reference import as_float64

from vgjax.config import Hypers
from vgjax.training import divergence, history
from vgjax.training.loop import run

LINEAR = dataclasses.replace(
    small.CONFIG, activation="linear", hidden=(8, 8, 8), optimizer="sgd", shuffle="never", epochs=20, cadence="every(1)"
)


def in_float32(config, variables, learning_rate, steps=60):
    """Where NumPy's float32 arithmetic leaves the finite numbers: the step, and the lowest layer whose z is not."""
    data = small.dataset()
    params = {
        name: {leaf: np.array(x[0], np.float32) for leaf, x in layer.items()}
        for name, layer in variables["params"].items()
    }
    names = sorted(params)
    for t in range(steps):
        rows = (np.arange(small.BATCH) + small.BATCH * (t % 3)) % small.N
        tape, h = [], data.train_inputs[rows]
        with np.errstate(all="ignore"):
            for name in names:
                tape.append(h)
                h = h @ params[name]["kernel"] + params[name]["bias"]
                if not np.isfinite(h).all():
                    return t, name
            p = np.exp(h - h.max(1, keepdims=True))
            delta = (p / p.sum(1, keepdims=True) - np.eye(3)[data.train_labels[rows]]).astype(np.float32) / len(rows)
            for name, x in zip(reversed(names), reversed(tape), strict=True):
                below = delta @ params[name]["kernel"].T
                params[name]["kernel"] -= np.float32(learning_rate) * (x.T @ delta)
                params[name]["bias"] -= np.float32(learning_rate) * delta.sum(0)
                delta = below
    return -1, ""


@pytest.mark.slow
def test_the_first_bad_step_and_layer():
    """One lane explodes and one does not: what is said of either is what NumPy finds; the sound one loses nothing."""
    start = run(dataclasses.replace(LINEAR, steps=1), Hypers(learning_rate=0.0), dataset=small.dataset()).variables
    both = run(LINEAR, [Hypers(learning_rate=2.0), Hypers(learning_rate=0.01)], dataset=small.dataset()).history
    step, layer = in_float32(LINEAR, start, 2.0)
    assert 0 < step < 60 and both["first_bad_step"].values.tolist() == [step, -1]
    assert both["first_bad_layer"].values.tolist() == [layer, ""]
    assert both["first_bad_in"].values.tolist() == ["forward", ""]
    assert both.sizes["record"] == 60 and both.sizes["evaluation"] == 20
    rms = both["gradient_rms"].isel(lane=0)
    assert np.isfinite(rms.sel(record=both["step"] < step)).all() and not np.isfinite(rms.isel(record=-1)).all()
    alone = run(LINEAR, Hypers(learning_rate=0.01), dataset=small.dataset()).history
    np.testing.assert_allclose(both["gradient_rms"].isel(lane=1), alone["gradient_rms"].isel(lane=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], ("", "")),
        ([[0, 1, 1], [1, 1, 1], [0, 1, 0]], ("b", "forward")),
        ([[0, 0, 0], [1, 1, 0], [1, 1, 0]], ("b", "backward")),
        ([[0, 0, 0], [0, 0, 0], [0, 1, 1]], ("b", "update")),
    ],
)
def test_where_it_began(rows, expected):
    """Forward: the lowest layer; backward: the highest; else the weights that the update made bad."""
    bad = np.array(rows, bool)
    found = divergence.describe(5 if bad.any() else -1, bad, ["a", "b", "c"])
    assert (found["first_bad_layer"], found["first_bad_in"]) == expected
    assert found["first_bad_step"] == (5 if bad.any() else -1)


@pytest.mark.slow
def test_a_diverged_run_ends_early_in_order(tmp_path):
    """All lanes bad: the history ends with the chunk after, on disk too; the same command again has nothing to do."""
    config = dataclasses.replace(LINEAR, cadence="epoch", epochs=200)
    first = run(
        config, Hypers(learning_rate=3.0), 2, dataset=small.dataset(), folder=tmp_path / "run", tensorboard="none"
    )
    found = first.history
    assert (found["first_bad_step"] >= 0).all() and found.sizes["evaluation"] == 2 * 21
    assert int(found["evaluated_at"][-1]) > int(found["first_bad_step"].max())
    lanes = (tmp_path / "run" / "lanes.csv").read_text().splitlines()
    assert lanes[0].startswith("lane,first_bad_step,first_bad_layer,first_bad_in,seed") and len(lanes) == 3
    again = run(
        config,
        Hypers(learning_rate=3.0),
        2,
        dataset=small.dataset(),
        folder=tmp_path / "run",
        resume=True,
        tensorboard="none",
    )
    assert again.history.identical(history.load(tmp_path / "run")) and again.history.sizes == found.sizes


@pytest.mark.slow
def test_backward_overflow_is_told_apart():
    """Huge weights above and tiny ones below: finite logits, and a gradient that overflows on its way back."""
    config = dataclasses.replace(LINEAR, hidden=(8, 8), steps=1)
    start = run(config, Hypers(learning_rate=0.0), dataset=small.dataset()).variables
    params = as_float64({name: {k: np.asarray(v) for k, v in layer.items()} for name, layer in start["params"].items()})
    scales = {"layer_1": 1e-38, "layer_2": 1e25, "layer_3": 1e25}
    huge = {
        name: {
            "kernel": (layer["kernel"] * scales[name]).astype(np.float32),
            "bias": layer["bias"].astype(np.float32) * 0,
        }
        for name, layer in params.items()
    }
    found = run(config, Hypers(learning_rate=1.0), dataset=small.dataset(), variables={"params": huge}).history
    assert np.isfinite(found["train_loss"]).all()
    where = [found[f"first_bad_{what}"].item() for what in ("step", "layer", "in")]
    assert where == [0, "layer_1", "backward"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "leaf", "layer"),
    [
        ("layer_2", "bias", "layer_2"),
        ("norm_3", "scale", "layer_3"),
        ("alpha_2", "alpha_2", "layer_2"),
    ],
)
def test_what_is_no_weight_can_leave_the_finite_numbers_too(module, leaf, layer):
    """An update that makes one bias, scale or gain infinite, in the last step of a run whose losses are finite."""

    def spoil(learning_rate):
        def update(gradients, params):
            def is_meant(path):
                names = [part.key for part in path]
                return names[0] == module and leaf in names

            return jax.tree_util.tree_map_with_path(
                lambda path, g: jnp.where(is_meant(path), jnp.inf, 0 * g), gradients
            )

        return optax.stateless(update)

    branch = "rezero" if module.startswith("alpha") else "plain"
    config = dataclasses.replace(LINEAR, norm="layer", branch=branch, optimizer=spoil, steps=1)
    found = run(config, Hypers(learning_rate=1.0), dataset=small.dataset()).history
    assert np.isfinite(found["loss"].values[0, 0])
    where = [found[f"first_bad_{what}"].item() for what in ("step", "layer", "in")]
    assert where == [0, layer, "update"]


def test_what_is_bad_in_a_stack_is_its_own_layers():
    """And what comes before the first layer is the first layer's."""
    one = {"bias": jnp.zeros(3), "kernel": jnp.ones((4, 3))}
    stack = {"layer": jax.tree.map(lambda x: jnp.stack([x] * 3), one), "alpha": jnp.zeros(3).at[2].set(jnp.nan)}
    tree = {"norm_0": {"scale": jnp.full(4, jnp.inf)}, "layer_1": one, "layers_2_to_4": stack, "layer_5": one}
    assert divergence._bad_modules(tree).tolist() == [True, False, False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [0.1, 1e30])
def test_validation_at_the_end_alone(learning_rate):
    """Everything else is the same, the step and layer of a divergence too; between, validation is NaN."""
    config = dataclasses.replace(small.CONFIG, activation="relu")
    found = [
        run(dataclasses.replace(config, validate=when), Hypers(learning_rate), 2, dataset=small.dataset()).history
        for when in ("every_epoch", "end")
    ]
    validation = ["validation_loss", "validation_accuracy"]
    xr.testing.assert_identical(*(one.drop_vars(validation).drop_attrs() for one in found))
    assert (found[0]["first_bad_step"].values >= 0).all() == (learning_rate > 1)
    if learning_rate < 1:
        assert found[1].sizes["evaluation"] == 3
        for name in validation:
            assert np.isnan(found[1][name].values[:, :-1]).all()
            np.testing.assert_array_equal(found[1][name].values[:, -1], found[0][name].values[:, -1])
