"""How batch norm makes the gradient grow, at infinite and at finite batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.activations import Activation
from vgjax.theory.gaussian import cached_activation, derivative, moment
from vgjax.theory.mean_field import chi1


def batch_norm_gradient_gain(activation: str | Activation, q: float = 1.0) -> float:
    """E[(dφ/du)²]/Var[φ], the growth of E‖δ‖² per layer going back through batch norm, in the limit of large batches.

    Args:
      activation: name, import path or callable, applied to √q u with u ~ N(0, 1).
      q: 1 where batch norm stands before φ; σ_w² where it stands after φ, at the next layer's inputs.

    Source: Yang et al. 2019, 1902.08129.

    >>> round(batch_norm_gradient_gain("relu"), 4)  # π / (π − 1)
    1.4669
    """
    variance = moment(2, q, activation) - moment(1, q, activation) ** 2
    return float(chi1(q, q, activation) / variance)


def finite_batch_norm_gradient_gain(activation: str | Activation, batch_size: int, n_numbers: int = 1 << 20) -> float:
    """The growth of E‖δ‖² per layer going back through batch norm before φ, at a finite batch and infinite width.

    Deep in the network all pairs of examples are alike: a unit's normalised batch u is uniform on the sphere of mean 0
    and variance 1, its length before that χ-distributed, and δ has the covariance of centred noise ε. Then the gain is
    B/(B − 3) · E‖Q(φ′(u) ε)‖² / ((B − 1) Var[φ(u)]), where Q takes away the mean and the part along u. For φ(x) = x:
    (B − 2)/(B − 3).

    Args:
      activation: name, import path or callable.
      batch_size: B, at least 4 (below, the mean is infinite) [examples].
      n_numbers: how many are drawn for the mean over u, always the same.

    Raises:
      ValueError: fewer than 4 examples.

    Source: the symmetric fixed point of Yang et al. 2019, 1902.08129.

    >>> round(finite_batch_norm_gradient_gain("linear", 8), 9)
    1.2
    """
    b = batch_size
    if b < 4:
        raise ValueError(f"batch_size {b} is not allowed; allowed: whole numbers from 4")
    z = np.random.default_rng(0).standard_normal((n_numbers // b, b))
    u = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    with jax.enable_x64(True):
        phi = cached_activation(activation)
        value, slope = (np.asarray(f(jnp.asarray(u))) for f in (phi, derivative(phi)))
    square = np.sum(slope**2, 1)
    along_u = np.sum((slope * u) ** 2, 1)
    of_means = square - np.sum(slope, 1) ** 2 / b - np.sum(slope * u, 1) ** 2 / b  # Q's part of the noise's mean
    passed = square - square / b - along_u / b - of_means / b
    return float(b / (b - 3) * passed.mean() / ((b - 1) * value.var(1, ddof=1).mean()))
