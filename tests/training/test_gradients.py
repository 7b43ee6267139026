"""Back-propagation through every kind of network equals an independent one in float64 NumPy."""

from __future__ import annotations

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vgjax.activations import ACTIVATIONS
from vgjax.config import Config, Hypers
from vgjax.data.batches import Batch
from vgjax.network.model import MLP, initial_variables
from vgjax.training.optim import make_optimizer
from vgjax.training.parallel import Layout
from vgjax.training.step import Lane, Program, State, train_step

pytestmark = pytest.mark.optimised

TUTORIAL = (512, 256, 128, 64, 32, 16)
INITIALIZER = {"sigmoid": "normal(0.3)", "linear": "lecun_normal"}  # a sigmoid network vanishes enough by itself


def batch_of(key, examples, features, classes, offset=0.0):
    """Inputs and labels, as NumPy arrays."""
    rng = np.random.default_rng(key)
    inputs = (rng.uniform(size=(examples, features)) + offset).astype(np.float32)
    return inputs, rng.integers(classes, size=examples).astype(np.int32)


def variables_of(config, inputs, classes):
    """Drawn variables, all of them moved away from their special starting values (0 and 1)."""
    variables = initial_variables(config, classes, Hypers(sigma_b=0.1), jax.random.key(7), jnp.asarray(inputs[:2]))

    def moved(path, leaf):
        if leaf.ndim == 2:
            return leaf
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        return leaf + jnp.asarray(rng.uniform(0.2, 0.6, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(moved, variables)


@functools.partial(jax.jit, static_argnums=0)
def one_step(program, variables, inputs, labels):
    lane = Lane(Hypers(), jax.random.key(0), jnp.int32(0))
    tx = make_optimizer(program.config, lane.hypers, program.total_steps)
    state = State(variables, tx.init(variables["params"]))
    state, outcome, view = train_step(program, lane, state, Batch(inputs, labels, None))
    return view.gradients, outcome.loss, outcome.correct, state.variables


def both(config, inputs, labels, classes):
    """The engine's step, and the reference's loss, gradients, accuracy and moments."""
    variables = variables_of(config, inputs, classes)
    program = Program(config, classes, len(labels), Layout(1, "lanes"))
    found = one_step(program, variables, jnp.asarray(inputs), jnp.asarray(labels))
    expected = reference.loss_and_gradients(
        reference.as_float64(variables["params"]),
        inputs.astype(np.float64),
        labels,
        activation=config.activation,
        norm=config.norm,
        norm_at=config.norm_at,
        epsilon=config.norm_epsilon,
        branch=config.branch,
        reduction=config.reduction,
    )
    return found, expected, variables


def assert_same_gradients(found, expected, elements=4e-6):
    """Norms relatively; elements relatively to the largest of their layer: never absolutely."""
    found = reference.as_float64(found)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, want), have in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        name, largest = jax.tree_util.keystr(path), np.abs(want).max()
        kernel = np.abs(expected[path[0].key]["kernel"]).max() if "bias" in name and "layer" in name else 0.0
        if largest < 1e-12 * kernel:  # a bias that batch norm takes away again: no gradient but for rounding
            assert np.abs(have).max() < 1e-4 * kernel, name
            continue
        assert largest > 0, name
        cancels = want.ndim == 0  # α's gradient is one sum over all examples and units
        assert np.linalg.norm(have) == pytest.approx(np.linalg.norm(want), rel=1e-4 if cancels else 1e-5, abs=0), name
        assert np.abs(have - want).max() < (1e-4 if cancels else elements) * largest, name


@pytest.mark.slow
def test_the_reference_is_the_derivative_of_its_own_loss():
    """Central differences of the float64 loss along a random direction of every parameter."""
    for kind in (
        {"norm": "batch", "norm_at": "post_activation", "branch": "rezero", "activation": "tanh"},
        {"norm": "layer", "norm_at": "layer_inputs", "branch": "residual", "activation": "gelu"},
    ):
        config = Config(hidden=(5, 5, 4), initializer="normal(0.5)", **kind)
        inputs, labels = batch_of(1, 9, 6, 3)
        params = reference.as_float64(variables_of(config, inputs, 3)["params"])
        x = inputs.astype(np.float64)
        _, gradients, _, _ = reference.loss_and_gradients(params, x, labels, **kind)
        leaves, tree = jax.tree.flatten(params)
        for i, gradient in enumerate(jax.tree.leaves(gradients)):
            direction = np.random.default_rng(i).normal(size=leaves[i].shape)
            moved = [tree.unflatten([*leaves[:i], leaves[i] + h * direction, *leaves[i + 1 :]]) for h in (1e-5, -1e-5)]
            up, down = (reference.loss_and_gradients(p, x, labels, **kind)[0] for p in moved)
            assert (up - down) / 2e-5 == pytest.approx(np.sum(gradient * direction), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_of_the_tutorials_network(name):
    """784-512-256-128-64-32-16-10 with biases, every activation."""
    assert name in reference.ACTIVATIONS, "a new activation needs its formula in reference.py"
    config = Config(hidden=TUTORIAL, activation=name, initializer=INITIALIZER.get(name, "he_normal"))
    inputs, labels = batch_of(0, 64, 784, 10)
    (gradients, loss, correct, _), (want_loss, want, share, _), _ = both(config, inputs, labels, 10)
    assert_same_gradients(gradients, want)
    assert float(loss) == pytest.approx(want_loss, rel=1e-6)
    assert float(correct) == round(share * 64)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction_and_bias(reduction, bias):
    """Gradients are sums or means as asked; the recorded loss is a mean either way."""
    config = Config(hidden=(12, 8), activation="tanh", reduction=reduction, bias=bias)
    inputs, labels = batch_of(2, 16, 20, 4)
    (gradients, loss, _, _), (want_loss, want, _, _), _ = both(config, inputs, labels, 4)
    assert_same_gradients(gradients, want)
    assert float(loss) == pytest.approx(want_loss / (16 if reduction == "sum" else 1), rel=1e-6)


PLACES = ["pre_activation", "post_activation", "layer_inputs", "network_input"]
KINDS = [(norm, place, "plain") for norm in ("batch", "layer") for place in PLACES]
KINDS += [
    (norm, place, branch)
    for branch in ("residual", "rezero")
    for norm, place in (("none", PLACES[0]), ("batch", PLACES[0]), ("batch", PLACES[1]), ("layer", PLACES[2]))
]


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "norm_at", "branch"), KINDS)
def test_gradients_of_normalised_and_residual_networks(norm, norm_at, branch):
    """Batch and layer norm at every place, with and without skip connections."""
    config = Config(hidden=(12, 12, 8), activation="tanh", norm=norm, norm_at=norm_at, branch=branch)
    inputs, labels = batch_of(3, 32, 12, 4)
    (gradients, loss, _, _), (want_loss, want, _, _), _ = both(config, inputs, labels, 4)
    assert_same_gradients(gradients, want, elements=3e-5)
    assert float(loss) == pytest.approx(want_loss, rel=1e-6)


def test_normalisation_of_inputs_far_from_zero():
    """A mean of thirty standard deviations costs the normalised gradient no digits beyond those of its inputs."""
    config = Config(hidden=(12, 8), activation="tanh", norm="batch", norm_at="network_input")
    inputs, labels = batch_of(4, 64, 12, 4, offset=10.0)
    (gradients, *_), (_, want, *_), _ = both(config, inputs, labels, 4)
    assert_same_gradients(gradients, want, elements=3e-5)


def test_batch_norm_keeps_keras_running_averages():
    """average ← 0.99 · average + 0.01 · (mean, biased variance) of the batch, and evaluation uses the averages."""
    config = Config(hidden=(6,), activation="tanh", norm="batch")
    inputs, labels = batch_of(5, 8, 5, 3)
    (_, _, _, after), (*_, moments), before = both(config, inputs, labels, 3)
    old, new = (reference.as_float64(v["batch_stats"]["norm_1"]) for v in (before, after))
    for which in ("mean", "var"):
        np.testing.assert_allclose(new[which], 0.99 * old[which] + 0.01 * moments["norm_1"][which], rtol=1e-6)

    logits, _ = MLP(config, 3).apply(before, jnp.asarray(inputs), train=False)
    p = reference.as_float64(before["params"])
    z = inputs.astype(np.float64) @ p["layer_1"]["kernel"] + p["layer_1"]["bias"]
    unit = (z - old["mean"]) / np.sqrt(old["var"] + config.norm_epsilon)
    h = np.tanh(unit * p["norm_1"]["scale"] + p["norm_1"]["bias"])
    np.testing.assert_allclose(logits, h @ p["layer_2"]["kernel"] + p["layer_2"]["bias"], rtol=2e-5, atol=1e-6)


def test_rezero_starts_as_the_identity():
    """α = 0: the hidden layers of equal width hand their input on, and their weights have no gradient yet."""
    config = Config(hidden=(6, 6, 6), activation="tanh", branch="rezero")
    inputs, labels = batch_of(6, 8, 6, 3)
    variables = initial_variables(config, 3, Hypers(), jax.random.key(0), jnp.asarray(inputs))
    _, seen = MLP(config, 3).apply(variables, jnp.asarray(inputs), train=True)
    np.testing.assert_array_equal(seen.activations["layer_3"], inputs)
    program = Program(config, 3, 8, Layout(1, "lanes"))
    gradients = one_step(program, variables, jnp.asarray(inputs), jnp.asarray(labels))[0]
    assert not np.any(gradients["layer_1"]["kernel"]) and np.any(gradients["alpha_1"])
