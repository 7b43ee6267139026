"""The dense layer's product and its derivatives, with weights few and many, equal float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax.network.dense import LARGEST_SMALL, Dense, dot_general

pytestmark = pytest.mark.optimised

EXAMPLES = 4
FEW, MANY = (6, 5), (400, 300)  # weights
assert EXAMPLES * np.prod(FEW) <= LARGEST_SMALL < EXAMPLES * np.prod(MANY)
DIMENSIONS = (((1,), (0,)), ((), ()))


def product(x, w):
    return dot_general(x, w, DIMENSIONS)


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def assert_same(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [FEW, MANY])
@pytest.mark.parametrize("size", [1e-30, 1, 1e30])
def test_both_gradients(shape, size):
    x, w, delta = drawn((EXAMPLES, shape[0]), shape, (EXAMPLES, shape[1]))
    delta = delta * np.float32(size)
    found = jax.jit(lambda x, w: jax.vjp(product, x, w)[1](delta))(x, w)
    exact = delta.astype(float)
    for one, expected in zip(found, (exact @ w.T.astype(float), x.T.astype(float) @ exact), strict=True):
        assert_same(one, expected)


@pytest.mark.parametrize("shape", [FEW, MANY])
def test_forward_mode(shape):
    x, w, dx, dw = drawn((EXAMPLES, shape[0]), shape, (EXAMPLES, shape[0]), shape)
    found = jax.jit(lambda *tangents: jax.jvp(product, (x, w), tangents))(dx, dw)
    x, w, dx, dw = (a.astype(float) for a in (x, w, dx, dw))
    assert_same(found[0], x @ w)
    assert_same(found[1], dx @ w + x @ dw)


@pytest.mark.parametrize("shape", [FEW, MANY])
def test_second_derivatives(shape):
    """Of f = ‖xW‖²/2 along (ẋ, Ẇ): ∇_W f = xᵀxW, ∇_x f = xWWᵀ."""
    x, w, dx, dw = drawn((EXAMPLES, shape[0]), shape, (EXAMPLES, shape[0]), shape)
    gradient = jax.grad(lambda x, w: jnp.sum(product(x, w) ** 2) / 2, argnums=(0, 1))
    found = jax.jit(lambda *tangents: jax.jvp(gradient, (x, w), tangents)[1])(dx, dw)
    x, w, dx, dw = (a.astype(float) for a in (x, w, dx, dw))
    along = dx @ w + x @ dw
    assert_same(found[0], along @ w.T + x @ w @ dw.T)
    assert_same(found[1], dx.T @ x @ w + x.T @ along)


def test_inputs_are_written_out_for_few_weights_alone():
    """On a CPU the one is faster for few, the other for many."""
    for shape in (FEW, MANY):
        x, w = drawn((EXAMPLES, shape[0]), shape)
        program = jax.make_jaxpr(lambda x, w: jax.vjp(product, x, w)[1](x @ w))(x, w)
        assert ("optimization_barrier" in str(program)) == (shape == FEW)


@pytest.mark.slow
@pytest.mark.parametrize("width", [FEW[1], MANY[1]])
def test_many_networks_at_once(width):
    """`vmap` over weights, and over inputs too."""
    x, w, delta = drawn((3, EXAMPLES, 400), (3, 400, width), (EXAMPLES, width))
    each = jax.vmap(lambda x, w: jax.grad(lambda w: jnp.sum(delta * product(x, w)))(w))
    shared = jax.vmap(lambda w: jax.grad(lambda w: jnp.sum(delta * product(x[0], w)))(w))
    expected = np.einsum("nbi,bo->nio", x.astype(float), delta)
    assert_same(each(x, w), expected)
    assert_same(shared(w), np.broadcast_to(expected[0], expected.shape))


@pytest.mark.slow
def test_delta_is_the_perturbations_gradient():
    (x,) = drawn((EXAMPLES, 6))
    layer = Dense(5)
    variables = layer.init(jax.random.key(0), x)
    delta = jax.grad(lambda z: jnp.sum(layer.apply({**variables, "perturbations": {"z": z}}, x) ** 2) / 2)
    kernel = np.asarray(variables["params"]["kernel"], float)
    assert_same(delta(variables["perturbations"]["z"]), x.astype(float) @ kernel)
