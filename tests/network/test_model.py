"""Initial parameters: what is drawn, by which key, and what is not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from vgjax.config import Config, Hypers
from vgjax.network.layer_names import unstacked
from vgjax.network.model import MLP, initial_variables
from vgjax.training.step import purpose_key


def seen_at_start(config, **hypers):
    """Standard deviations of the pre-activations over the first batch, layer by layer, and the parameters."""
    inputs = jnp.asarray(np.random.default_rng(0).uniform(size=(64, 20)), jnp.float32)
    variables = initial_variables(config, 5, Hypers(**hypers), jax.random.key(1), inputs)
    (_, seen), _ = MLP(config, 5).apply(variables, inputs, train=True, mutable=["batch_stats"])
    return [float(jnp.std(z)) for z in seen.pre_activations.values()], variables["params"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), [("relu", "none"), ("sigmoid", "batch")])
def test_lsuv_gives_unit_variance(name, norm):
    """Every layer's pre-activations have variance 1 on the first batch, the logits too."""
    stds, _ = seen_at_start(Config(hidden=(30, 20, 10, 10), activation=name, initializer="lsuv", norm=norm))
    assert stds == pytest.approx([1] * 5, rel=1e-4)


def test_lsuv_where_it_is_asked_for():
    """Hidden layers alone, or the output alone, as the two initializers say."""
    stds, params = seen_at_start(Config(hidden=(30, 20), initializer="lsuv", output_initializer="normal(0.01)"))
    assert stds[:2] == pytest.approx([1, 1], rel=1e-4) and stds[2] < 0.2
    assert float(jnp.std(params["layer_3"]["kernel"])) == pytest.approx(0.01, rel=0.2)
    stds, _ = seen_at_start(Config(hidden=(30, 20), initializer="normal(0.01)", output_initializer="lsuv"))
    assert stds[0] < 0.2 and stds[2] == pytest.approx(1, rel=1e-4)


def test_sigmas():
    """σ_w multiplies every weight, and biases are N(0, σ_b²), 0 by default."""
    config = Config(hidden=(300, 200), initializer="uniform")
    (_, plain), (_, wide) = seen_at_start(config), seen_at_start(config, sigma_w=1.5, sigma_b=0.3)
    for layer in plain:
        np.testing.assert_allclose(wide[layer]["kernel"], 1.5 * plain[layer]["kernel"], rtol=1e-6)
        assert not plain[layer]["bias"].any()
    biases = np.concatenate([wide["layer_1"]["bias"], wide["layer_2"]["bias"]])
    assert abs(biases.mean()) < 0.06 and biases.std() == pytest.approx(0.3, rel=0.15)


@pytest.mark.slow
def test_keys_by_path():
    """A parameter's draw depends on its own path: other widths above, another norm or no bias do not change it."""
    first = seen_at_start(small.CONFIG)[1]
    for changes in ({"hidden": (8, 7)}, {"hidden": (8, 6, 6)}, {"bias": False}, {"norm": "batch"}):
        other = seen_at_start(dataclasses.replace(small.CONFIG, **changes))[1]
        np.testing.assert_array_equal(first["layer_1"]["kernel"], other["layer_1"]["kernel"])
    assert not np.allclose(first["layer_1"]["kernel"][:8, :6], first["layer_2"]["kernel"][:8, :6])
    key = jax.random.key(0)
    assert purpose_key(key, "init") != purpose_key(key, "shuffle") != key


@pytest.mark.parametrize("depth", [3, 16])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_what_is_not_drawn(norm, depth):
    """Norms start as the identity and ReZero's α at 0, in a stack as in single layers; biases are drawn in both."""
    config = Config(hidden=(8,) * depth, norm=norm, branch="rezero")
    inputs = jnp.ones((4, 8))
    variables = initial_variables(config, 5, Hypers(sigma_b=0.3), jax.random.key(1), inputs)
    params, averages = unstacked(variables["params"]), unstacked(variables.get("batch_stats", {}))
    for i in range(1, depth + 1):
        assert (params[f"norm_{i}"]["scale"] == 1).all() and not params[f"norm_{i}"]["bias"].any()
        assert params[f"alpha_{i}"] == 0
        assert params[f"layer_{i}"]["bias"].all()
        assert norm == "layer" or (
            (averages[f"norm_{i}"]["var"] == 1).all() and not averages[f"norm_{i}"]["mean"].any()
        )
