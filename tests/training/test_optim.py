"""Optimizers, clipping, decay and schedules, step by step against formulas in float64 NumPy, and against Keras."""

from __future__ import annotations

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax.config import Config, Hypers
from vgjax.statistics.view import Points
from vgjax.training.optim import CLIPS, OPTIMIZERS, SCHEDULES, make_optimizer, zeroed

pytestmark = pytest.mark.optimised

LR = 0.1
RTOL = 1e-5
ADAM = 5e-5  # 1 − β₂ᵗ loses three digits of float32
RNG = np.random.default_rng(0)
PARAMS = {"layer_1": {"bias": RNG.normal(size=3), "kernel": RNG.normal(size=(4, 3))}, "alpha_1": np.array(0.5)}
GRADIENTS = [jax.tree.map(lambda p: RNG.normal(size=p.shape), PARAMS) for _ in range(3)]


def updates_of(config, hypers, gradients, params=PARAMS, total_steps=10):
    """What three steps would add to the parameters, which stay where they are."""
    as_jax = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)  # noqa: E731
    tx = make_optimizer(config, hypers, total_steps)
    update = jax.jit(tx.update)
    state, found = tx.init(as_jax(params)), []
    for gradient in gradients:
        updates, state = update(as_jax(gradient), state, as_jax(params))
        found.append(updates)
    return found


def assert_close(found, expected, rtol=RTOL):
    for have, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(have, want, rtol=rtol, atol=0)


def adam(gradients, eps, outside=False, b1=0.9, b2=0.999):
    """Kingma & Ba's directions; `outside`: ε outside the bias correction, as Keras."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        if outside:
            yield np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
        else:
            yield m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def trace(gradients, nesterov=False, decay=0.9):
    m = 0.0
    for g in gradients:
        m = decay * m + g
        yield g + decay * m if nesterov else m


def rms(gradients, decay=0.9, eps=1e-8):
    v = 0.0
    for g in gradients:
        v = decay * v + (1 - decay) * g**2
        yield g / np.sqrt(v + eps)


FORMULAS = {
    "sgd": lambda g: iter(g),
    "momentum": trace,
    "nesterov": lambda g: trace(g, nesterov=True),
    "adam": lambda g: adam(g, 1e-8),
    "adamw": lambda g: adam(g, 1e-8),
    "keras_adam": lambda g: adam(g, 1e-7, outside=True),
    "rmsprop": rms,
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [1.0, 1e-7])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_of_each_optimizer(name, size):
    """Δ = −lr · direction, for gradients of size 1 and for vanishing ones."""
    gradients = [jax.tree.map(lambda x: size * x, g) for g in GRADIENTS]
    found = updates_of(Config(optimizer=name), Hypers(LR), gradients)
    for leaf in range(3):
        directions = FORMULAS[name]([jax.tree.leaves(g)[leaf] for g in gradients])
        for have, want in zip(found, directions, strict=True):
            np.testing.assert_allclose(jax.tree.leaves(have)[leaf], -LR * want, rtol=ADAM if "adam" in name else RTOL)


def test_own_optimizer():
    """A factory given by import path makes the same steps as the row of its formula."""
    for path, row in (("optax:adam", "adam"), ("optax:rmsprop", "rmsprop")):
        both = [updates_of(Config(optimizer=name), Hypers(LR), GRADIENTS) for name in (path, row)]
        assert_close(*both)


def clip_value(g, w, c):
    return jax.tree.map(lambda x: np.clip(x, -c, c), g)


def clip_global(g, w, c):
    total = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(g)))
    return jax.tree.map(lambda x: x * min(1, c / total), g)


def clip_layer(g, w, c):
    return jax.tree.map(lambda x: x * min(1, c / np.linalg.norm(x)), g)


def clip_agc(g, w, c):
    """Brock et al. 2021: unit by unit (a column of the kernel, or the whole vector), ‖g‖ ≤ c · max(‖w‖, 10⁻³)."""

    def clip(g, w):
        size = lambda x: np.sqrt(np.sum(x**2, axis=0 if x.ndim == 2 else None, keepdims=True))  # noqa: E731
        return g * np.minimum(1, c * np.maximum(size(w), 1e-3) / size(g))

    return jax.tree.map(clip, g, w)


CLIP_FORMULAS = {
    "none": lambda g, w, c: g,
    "value": clip_value,
    "global_norm": clip_global,
    "layer_norm": clip_layer,
    "agc": clip_agc,
}


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.3, 100.0])
@pytest.mark.parametrize("clip", CLIPS)
def test_each_clip(clip, threshold):
    """Below the threshold gradients pass untouched, above it they are cut by the formula."""
    found = updates_of(Config(clip=clip), Hypers(LR, clip_threshold=threshold), GRADIENTS[:1])[0]
    expected = CLIP_FORMULAS[clip](GRADIENTS[0], PARAMS, threshold)
    assert_close(found, jax.tree.map(lambda x: -LR * x, expected))
    is_cut = not np.allclose(jax.tree.leaves(expected)[-1], jax.tree.leaves(GRADIENTS[0])[-1])
    assert is_cut == (threshold == 0.3 and clip != "none")


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
def test_a_step_keeps_the_form_of_the_state(clip):
    """As a loop of compiled steps needs it."""
    tx = make_optimizer(Config(clip=clip, optimizer="momentum"), Hypers(LR, clip_threshold=1.0), 10)
    one = jnp.ones((2, 2))
    state = tx.init(one)
    assert jax.tree.structure(tx.update(one, state, one)[1]) == jax.tree.structure(state)


@pytest.mark.parametrize("decay", ["l2", "decoupled"])
def test_decay_of_weights_alone(decay):
    """l2 goes through the momentum, decoupled decay past it; biases and scalars are left out of both."""
    wd, w = 0.01, PARAMS["layer_1"]["kernel"]
    found = updates_of(Config(optimizer="momentum", decay=decay), Hypers(LR, wd), GRADIENTS)
    for path in (("layer_1", "kernel"), ("layer_1", "bias"), ("alpha_1",)):
        pick = lambda tree, path=path: tree[path[0]] if len(path) == 1 else tree[path[0]][path[1]]  # noqa: E731
        mine = wd * w if path[-1] == "kernel" else 0.0
        l2, outside = (mine, 0.0) if decay == "l2" else (0.0, mine)
        for have, m in zip(found, trace([pick(g) + l2 for g in GRADIENTS]), strict=True):
            np.testing.assert_allclose(pick(have), -LR * (m + outside), rtol=RTOL)


def test_mxnets_sgd():
    """mom ← m · mom − lr · (g/B + wd · w); w ← w + mom, over three steps of summed gradients."""
    batch, wd = 32, 0.01
    config = Config(optimizer="momentum(0.9)", decay="l2", reduction="sum", batch_size=batch)
    tx = make_optimizer(config, Hypers(LR, wd), 10)
    found = {"kernel": jnp.asarray(PARAMS["layer_1"]["kernel"], jnp.float32)}
    w, mom, state = PARAMS["layer_1"]["kernel"], 0.0, tx.init(found)
    for g in (batch * g["layer_1"]["kernel"] for g in GRADIENTS):
        mom = 0.9 * mom - LR * (g / batch + wd * w)
        w = w + mom
        updates, state = tx.update({"kernel": jnp.asarray(g, jnp.float32)}, state, found)
        found = jax.tree.map(jnp.add, found, updates)
        np.testing.assert_allclose(found["kernel"], w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("raw", "clipped", "expected"),
    [
        ([0, 3e30], [0, 0], True),  # an overflow in Optax's norm
        ([0, 1], [0, 0], True),
        ([1, 1], [0, 0], True),
        ([0, 0], [0, 0], False),  # a dead layer has no gradient before either
        ([-3, 4], [-1, 0], False),
        ([0, 4], [0, 1], False),
    ],
)
def test_a_gradient_that_clipping_made_zero(raw, clipped, expected):
    """It is told of where it happens to one parameter among others, and only where there was any."""
    for other in ([0, 0], [2, 0]):
        points = (({"a": jnp.array(other, float), "b": jnp.array(b, float)}) for b in (raw, clipped))
        found = zeroed(Points(*points, None))
        assert found.dtype == bool and bool(found) == expected


def test_sums_are_rescaled_before_they_are_clipped():
    """The clip threshold means the same for sums and for means."""
    config = Config(clip="value", reduction="sum", batch_size=8)
    summed = [jax.tree.map(lambda x: 8 * x, GRADIENTS[0])]
    found = updates_of(config, Hypers(LR, clip_threshold=0.3), summed)[0]
    assert_close(found, jax.tree.map(lambda x: -LR * np.clip(x, -0.3, 0.3), GRADIENTS[0]))


SCHEDULE_FORMULAS = {
    "constant": lambda t, n: 1.0,
    "cosine": lambda t, n: (1 + np.cos(np.pi * t / n)) / 2,
    "linear": lambda t, n: 1 - t / n,
    "exponential": lambda t, n: 0.1 ** (t / n),
    "warmup_cosine": lambda t, n: t / (0.1 * n) if t < 0.1 * n else (1 + np.cos(np.pi * (t / n - 0.1) / 0.9)) / 2,
    "cosine(0.2)": lambda t, n: 0.2 + 0.8 * (1 + np.cos(np.pi * t / n)) / 2,
    "linear(end=0.5)": lambda t, n: 1 - t / n / 2,
}


@pytest.mark.parametrize("name", [*SCHEDULES, "cosine(0.2)", "linear(end=0.5)"])
def test_each_schedule(name):
    """The learning rate follows its formula at every one of twenty steps, one gradient of 1 each."""
    tx = make_optimizer(Config(schedule=name), Hypers(LR), 20)
    one = jnp.ones((1, 1))
    update, state = jax.jit(tx.update), tx.init(one)
    for t in range(20):
        found, state = update(one, state, one)
        assert float(found[0, 0]) == pytest.approx(-LR * SCHEDULE_FORMULAS[name](t, 20), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", [*SCHEDULES, "warmup_cosine(1.0)"])
@pytest.mark.parametrize("steps", [1, 2])
def test_schedules_of_the_shortest_runs(name, steps):
    """A run of one or two steps has finite learning rates."""
    tx = make_optimizer(Config(schedule=name), Hypers(LR), steps)
    one, state = jnp.ones((1, 1)), tx.init(jnp.ones((1, 1)))
    for _ in range(steps):
        found, state = tx.update(one, state, one)
        assert np.isfinite(found).all() and -LR * 1.001 <= float(found[0, 0]) <= 0


@pytest.mark.parametrize("optimizer", ["adamw", "adamw(b1=0.8)"])
def test_adamw_has_no_l2_decay(optimizer):
    """The contradiction is refused, with what is allowed."""
    with pytest.raises(ValueError, match=r"l2.*adamw.*allowed: decoupled"):
        make_optimizer(Config(optimizer=optimizer, decay="l2"), Hypers(), 1)


def test_traced_hypers():
    """A learning rate and a threshold that differ from lane to lane run as one program."""
    hypers = Hypers(jnp.array([0.1, 0.2]), 0.0, jnp.array([0.5, 0.25]))
    g = jnp.array([[3.0, 4.0]])

    def one(learning_rate, clip_threshold):
        tx = make_optimizer(Config(clip="layer_norm"), Hypers(learning_rate, 0.0, clip_threshold), 10)
        return tx.update(g, tx.init(g), g)[0]

    found = jax.vmap(one)(hypers.learning_rate, hypers.clip_threshold)
    np.testing.assert_allclose(found, -0.05 * np.array([[[0.6, 0.8]], [[0.6, 0.8]]]), rtol=1e-6)


@pytest.fixture(scope="module")
def keras():
    """Real Keras, on TensorFlow."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras", reason="Keras is not installed", exc_type=ImportError)


@pytest.mark.parametrize("size", [1.0, 1e-7])
@pytest.mark.parametrize("name", ["sgd", "keras_adam"])
def test_same_steps_as_keras(keras, name, size):
    """SGD(clipvalue=…) and Adam of real Keras move a variable as ours do, over three steps."""
    gradients = [(size * g["layer_1"]["kernel"]).astype(np.float32) for g in GRADIENTS]
    theirs = keras.optimizers.SGD(LR, clipvalue=0.5 * size) if name == "sgd" else keras.optimizers.Adam(LR)
    config = Config(optimizer=name, clip="value" if name == "sgd" else "none")
    tx = make_optimizer(config, Hypers(LR, clip_threshold=0.5 * size), 10)
    variable = keras.Variable(np.zeros((4, 3), np.float32))
    ours, state = jnp.zeros((4, 3)), None
    state = tx.init(ours)
    for g in gradients:
        theirs.apply([keras.ops.convert_to_tensor(g)], [variable])
        updates, state = tx.update(jnp.asarray(g), state, ours)
        ours = ours + updates
        np.testing.assert_allclose(ours, np.asarray(variable), rtol=ADAM if name == "keras_adam" else RTOL, atol=0)
