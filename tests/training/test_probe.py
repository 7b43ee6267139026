"""Networks at step 0: the engine's own, seed by seed, and what is looked at computed once more in float64 NumPy."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from vgjax import Hypers, run
from vgjax.config import Config
from vgjax.statistics.weights import norm_statistics
from vgjax.training.probe import Network, per_layer, probe

CONFIG = Config(hidden=(7,) * 15, activation="tanh", initializer="mean_field")  # a stack, and layers beside it
HYPERS = [Hypers(sigma_w=1.2, sigma_b=0.3), Hypers(sigma_w=2.0)]
INPUTS = np.random.default_rng(0).standard_normal((5, 4))


def gradients(network: Network) -> dict:
    """Of the weights."""
    return norm_statistics(network.step().gradients)


def parameters(network: Network) -> dict:
    """As they are."""
    return network.variables["params"]


def lengths(network: Network) -> jax.Array:
    """Mean of z², layer by layer."""
    return per_layer(lambda z: jnp.mean(z**2), network.seen(network.inputs).pre_activations)


def jacobian(network: Network) -> jax.Array:
    """Of the last hidden layer, at the first example."""
    return jax.jacfwd(lambda x: network.last_hidden(x[None])[0])(network.inputs[0])


@pytest.mark.slow
@pytest.mark.parametrize("initializer", ["mean_field", "orthogonal"])
def test_first_step_is_the_engine_s(initializer: str) -> None:
    """The same gradients as a recorded run of the same seeds on the same batch.

    In ordered networks: chaotic ones stretch the rounding, in which two programs differ, layer by layer.
    """
    hypers = [Hypers(sigma_w=1.2, sigma_b=0.3), Hypers(sigma_w=0.8)]
    data = small.dataset()
    config = replace(
        CONFIG, dataset="small", initializer=initializer, shuffle="never", batch_size=len(data.train_labels), steps=1
    )
    history = run(config, hypers, [3, 4], dataset=data).history.isel(record=0)
    found = probe(gradients, config, hypers, [3, 4], data.train_inputs, data.train_labels, data.classes)
    expected = history["gradient_norm"].values.reshape(2, 2, -1)
    np.testing.assert_allclose(found["gradient_norm"], expected, rtol=1e-4)
    assert np.ptp(expected, axis=(0, 1)).min() > 0


@pytest.mark.slow
def test_layers_and_jacobian_are_those_of_the_parameters() -> None:
    """Forward pass and chain rule in NumPy, float64, with the parameters that were drawn."""
    params = probe(parameters, CONFIG, HYPERS, 2, INPUTS)
    q = probe(lengths, CONFIG, HYPERS, 2, INPUTS, float64=True)
    jacobians = probe(jacobian, CONFIG, HYPERS, 2, INPUTS, float64=True)
    for setting in range(2):
        for seed in range(2):
            own = jax.tree.map(lambda x, i=(setting, seed): x[i].astype(np.float64), params)
            stack = own["layers_2_to_15"]["layer"]
            layers = [own["layer_1"], *({k: v[i] for k, v in stack.items()} for i in range(14)), own["layer_16"]]
            h, slope = INPUTS, np.eye(4)
            for i, layer in enumerate(layers):
                z = h @ layer["kernel"] + layer["bias"]
                np.testing.assert_allclose(q[setting, seed, i], np.mean(z**2), rtol=1e-12)
                h = np.tanh(z)
                if i < 15:
                    slope = (1 - h[0] ** 2)[:, None] * (layer["kernel"].T @ slope)
            np.testing.assert_allclose(jacobians[setting, seed], slope, rtol=1e-9)


def test_networks_depend_on_the_seed_and_not_on_its_company() -> None:
    """Slices change nothing."""
    together = probe(lengths, CONFIG, HYPERS[0], 6, INPUTS)
    alone = probe(lengths, CONFIG, HYPERS[0], [4], INPUTS)
    np.testing.assert_allclose(together[:, 4:5], alone, rtol=1e-6)
    assert len(np.unique(together[0, :, -1])) == 6
