"""Activation functions: name → function, with its source and its kinks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.names import Entry, resolve

Activation = Callable[[jax.Array], jax.Array]

SATURATED_SLOPE = 0.1  # a unit is saturated where its slope is at most this share of the activation's steepest


def linear(x: jax.Array) -> jax.Array:
    """φ(x) = x."""
    return x


def erf(x: jax.Array) -> jax.Array:
    """φ(x) = erf(x)."""
    return jax.lax.erf(x)


def elu(x: jax.Array) -> jax.Array:
    """φ(x) = x for x > 0, exp(x) − 1 below."""
    return jax.nn.elu(x)


ACTIVATIONS: dict[str, Entry] = {
    "sigmoid": Entry(lambda: jax.nn.sigmoid, "1 / (1 + exp(−x))", "classical; Glorot & Bengio 2010"),
    "tanh": Entry(lambda: jnp.tanh, "tanh(x)", "LeCun et al. 1998, Efficient BackProp"),
    "softsign": Entry(lambda: jax.nn.soft_sign, "x / (1 + |x|)", "Glorot & Bengio 2010"),
    "relu": Entry(lambda: jax.nn.relu, "max(x, 0)", "Nair & Hinton 2010"),
    "leaky_relu": Entry(
        lambda slope=0.01: partial(jax.nn.leaky_relu, negative_slope=slope),
        "x for x ≥ 0, slope·x below; slope 0.01",
        "Maas et al. 2013",
    ),
    "elu": Entry(lambda: elu, "x for x > 0, exp(x) − 1 below", "Clevert et al. 2016, 1511.07289"),
    "selu": Entry(lambda: jax.nn.selu, "λ·x for x > 0, λα(exp(x) − 1) below", "Klambauer et al. 2017, 1706.02515"),
    "gelu": Entry(
        lambda: partial(jax.nn.gelu, approximate=False), "x·Φ(x), exact", "Hendrycks & Gimpel 2016, 1606.08415"
    ),
    "swish": Entry(lambda: jax.nn.swish, "x·sigmoid(x)", "Ramachandran et al. 2017, 1710.05941"),
    "erf": Entry(lambda: erf, "erf(x)", "Williams 1997"),
    "linear": Entry(lambda: linear, "x", "Saxe et al. 2013, 1312.6120"),
}


def activation(named: str | Activation) -> Activation:
    """The activation of that name, import path, or the callable itself.

    >>> float(activation("leaky_relu(0.2)")(jnp.float32(-1)))
    -0.20000000298023224
    """
    return resolve("activation", ACTIVATIONS, named)


@lru_cache(maxsize=64)
def steepest_slope(named: str | Activation) -> float:
    """sup |φ′(x)| over −20 … 20, on a grid of 1/1000.

    >>> steepest_slope("sigmoid")
    0.25
    """
    phi = activation(named)
    with jax.ensure_compile_time_eval():
        x = jnp.asarray(np.linspace(-20, 20, 40_001, dtype=np.float32))
        return float(jnp.max(jnp.abs(jax.jvp(phi, (x,), (jnp.ones_like(x),))[1])))


def kinks(named: str | Activation) -> tuple[float, ...]:
    """Where φ′ jumps, within −20 … 20: there, halving an interval does not halve the difference of φ′ at its ends.

    >>> kinks("relu")
    (0.0,)
    """
    phi = activation(named)

    def slope(x: np.ndarray) -> np.ndarray:
        return np.asarray(jax.jvp(phi, (jnp.asarray(x),), (jnp.ones_like(x),))[1])

    with jax.enable_x64(True):
        grid = np.linspace(-20, 20, 40_001)
        left, right = grid[:-1], grid[1:]
        jump = first = np.abs(slope(right) - slope(left))
        for _ in range(20):
            middle = (left + right) / 2
            before, after = np.abs(slope(middle) - slope(left)), np.abs(slope(right) - slope(middle))
            left, right = np.where(before > after, left, middle), np.where(before > after, middle, right)
            jump = np.maximum(before, after)
    rounding = 16 * np.finfo(np.float32).eps * steepest_slope(named)
    return tuple(np.unique(np.round(middle[jump > np.maximum(first / 2, rounding)], 6) + 0.0).tolist())
