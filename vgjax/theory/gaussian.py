"""Expectations of an activation over one or two Gaussians, by quadrature in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from vgjax import activations
from vgjax.activations import Activation

Numbers = float | np.ndarray
SMALLEST = 1e-30  # stands for q → 0: at q = 0 itself a kinked φ has no derivative
NOISE = 1e-12  # smaller relative differences are rounding errors
cached_activation = lru_cache(activations.activation)  # one callable per name, so that JAX compiles once per name


def _rule(n: int, reach: float = 9.0) -> tuple[np.ndarray, np.ndarray]:
    """Nodes r and weights for ∫ dr exp(−r²/2), Gauss–Legendre in √|r| on either side of 0.

    The interval is split at 0, where the table's activations have their kinks, if any. The nodes are dense near 0,
    where φ(√q r) changes fast when q is large.
    """
    x, weight = np.polynomial.legendre.leggauss(n)
    s = (x + 1) / 2
    r = reach * s**2
    weight = reach * s * weight * np.exp(-(r**2) / 2)
    return np.concatenate([-r, r]), np.concatenate([weight, weight])


_Z, _DZ = _rule(128)  # nodes and weights of one Gaussian
_R, _DR = _rule(48)  # of two Gaussians: the radius
_T, _DT = np.polynomial.legendre.leggauss(32)  # and the angle in each of two sectors


def gaussian_mean(f: Activation, q: jax.Array) -> jax.Array:
    """E[f(√q z)], z ~ N(0, 1): a pure function of a scalar q, to be differentiated or vmapped."""
    return jnp.sum(_DZ * f(jnp.sqrt(q) * _Z)) / math.sqrt(2 * math.pi)


def gaussian_pair_mean(f: Activation, q1: jax.Array, q2: jax.Array, c: jax.Array) -> jax.Array:
    """E[f(u₁) f(u₂)] for Gaussians of variances q1 and q2 and correlation c, in polar coordinates; pure, of scalars.

    With u₁ = √q1 r cos θ, u₂ = √q2 r cos(θ − arccos c), the kinks u₁ = 0 and u₂ = 0 are two lines through the origin:
    split there, the integrand is smooth for every c. At c = ±1 one sector is empty and has weight 0.
    """
    psi = jnp.arccos(jnp.clip(c, -1, 1))
    theta = jnp.concatenate([(psi * _T + psi - jnp.pi) / 2, ((jnp.pi - psi) * _T + psi) / 2])
    d_theta = jnp.concatenate([psi * _DT / 2, (jnp.pi - psi) * _DT / 2])
    u1 = jnp.sqrt(q1) * jnp.outer(_R, jnp.cos(theta))
    u2 = jnp.sqrt(q2) * jnp.outer(_R, jnp.cos(theta - psi))
    return (_DR * np.abs(_R)) @ (f(u1) * f(u2)) @ d_theta / (2 * np.pi)


def derivative(phi: Activation) -> Activation:
    """φ', elementwise, by automatic differentiation."""
    return jax.grad(lambda x: jnp.sum(phi(x)))


def mean_square(phi: Activation, q: jax.Array) -> jax.Array:
    """E[φ(√q z)²], pure."""
    return gaussian_mean(lambda u: jnp.square(phi(u)), q)


def mean_slope_square(phi: Activation, q: jax.Array) -> jax.Array:
    """E[φ′(√q z)²], pure."""
    return mean_square(derivative(phi), q)


mean_square_growth = jax.grad(mean_square, argnums=1)  # ∂E[φ²]/∂q = E[φ'²] + E[φ φ''], with no φ'' at the kinks


def _slope_pair_mean(phi: Activation, q1: jax.Array, q2: jax.Array, c: jax.Array) -> jax.Array:
    return gaussian_pair_mean(derivative(phi), q1, q2, c)


@lru_cache
def _moment(power: int) -> Callable[..., jax.Array]:
    return lambda phi, q: gaussian_mean(lambda u: phi(u) ** power, q)


_moment_growth = lru_cache(lambda power: jax.grad(_moment(power), argnums=1))


@partial(jax.jit, static_argnums=(0, 1))
def _map_rows(inner: Callable[..., jax.Array], phi: Activation, *columns: jax.Array) -> jax.Array:
    return jax.lax.map(
        lambda row: inner(phi, *row), columns, batch_size=64
    )  # in blocks, since each pair takes 6144 nodes


def evaluated(inner: Callable[..., jax.Array], named: str | Activation, *values: ArrayLike) -> Any:
    """`inner(phi, *values)` over broadcast arrays, in float64; takes and returns NumPy."""
    columns = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in values))
    with jax.enable_x64(True):
        result = np.asarray(_map_rows(inner, cached_activation(named), *(column.ravel() for column in columns)))
    return result.reshape(columns[0].shape) if columns[0].ndim else result.item()


def mean(q: ArrayLike, activation: str | Activation) -> Numbers:
    """E[φ(√q z)], z ~ N(0, 1)."""
    return evaluated(gaussian_mean, activation, q)


def product(q1: ArrayLike, q2: ArrayLike, c: ArrayLike, activation: str | Activation) -> Numbers:
    """E[φ(u₁) φ(u₂)] for Gaussians of variances q1 and q2 and correlation c; all broadcast."""
    return evaluated(gaussian_pair_mean, activation, q1, q2, c)


def slope_product(q1: ArrayLike, q2: ArrayLike, c: ArrayLike, activation: str | Activation) -> Numbers:
    """E[φ′(u₁) φ′(u₂)] for the same."""
    return evaluated(_slope_pair_mean, activation, q1, q2, c)


def moment(power: int, q: ArrayLike, activation: str | Activation) -> Numbers:
    """E[φ(√q z)^power]: mean and variance of a layer's activations are moment 1, and moment 2 less its square.

    >>> round(moment(2, 1.0, "selu") - moment(1, 1.0, "selu") ** 2, 6)
    1.0
    """
    return evaluated(_moment(power), activation, q)


def moment_growth(power: int, q: ArrayLike, activation: str | Activation) -> Numbers:
    """∂E[φ(√q z)^power]/∂q, for q > 0."""
    return evaluated(_moment_growth(power), activation, q)
