"""Random networks of the actual widths, drawn layer by layer under the assumptions of mean-field theory.

Given its inputs, a wide layer's pre-activations are Gaussian with a known covariance over the batch. The weights that δ
meets in the backward pass are taken to be independent of those of the forward pass (Schoenholz et al. 2016). So only
covariances are needed, and most weights are never drawn. Weights are drawn in layers with fewer inputs than the batch
has examples, and in the last layer, where δ begins. The spread over draws is the finite-width band; as layers become
wide, its centre tends to the maps of `mean_field`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from vgjax.activations import SATURATED_SLOPE, activation, steepest_slope
from vgjax.config import Config, Hypers, Named
from vgjax.initializers import is_data_dependent, weight_variance

_BLOCK = 1 << 16  # φ is applied to blocks of so many numbers, so that it is compiled once for all layers
_MOST = 1 << 22  # the most numbers in one array; limits how many networks are drawn at a time
_JITTER = 1e-10  # this share of its mean diagonal is added to a covariance, so that its Cholesky factor exists

Array = np.ndarray


class Draws(NamedTuple):
    """Root mean squares over a batch, and shares of units; one row per network, one column per layer [draws, L]."""

    activation_rms: Array  # of the layer's outputs; of the last layer, the logits
    delta_rms: Array  # of δ = ∂loss/∂z
    gradient_rms: Array  # of ∂loss/∂W
    dead_fraction: Array  # units whose slope is 0 on every example
    saturated_fraction: Array  # units and examples with |φ′| ≤ SATURATED_SLOPE · sup|φ′|


class _Norm(NamedTuple):
    """A normalisation of the forward pass, kept for the backward pass."""

    axis: int  # −1: over the batch; −2: over the units
    unit: Array  # the normalised values
    deviation: Array


class _Layer(NamedTuple):
    """A layer of the forward pass, arrays [draws, units, B]."""

    inputs: Array
    weight_std: Array  # √Var(W) [draws, 1, 1]
    weights: Array | None  # divided by that [draws, units, fan_in]; None if only covariances were used
    slope: Array | float  # φ′; of the last layer 1
    norms: dict[str, _Norm]  # by place, as `norm_at` names it
    alpha: float | None  # of its residual branch; None without one


def draw_networks(
    config: Config, hypers: Hypers, inputs: Array, labels: Array, classes: int, batch_size: int, seed: int = 0
) -> Draws:
    """Draw networks at initialization, each on a batch of its own.

    Args:
      config: the network, and the loss's reduction; of its initializers only their variances matter.
      hypers: σ_w and σ_b.
      inputs: as the network sees them, [draws, B, n₀].
      labels: their classes, [draws, B].
      classes: number of logits.
      batch_size: the run's; where B is smaller, gradients are extrapolated from the pairs of examples.
      seed: of the draws.

    Returns:
      [draws, L] each, in the units of the statistics that a run records.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # overflow gives inf or NaN
        return _draw_all(config, hypers, inputs, labels, classes, batch_size, np.random.default_rng(seed))


def _draw_all(
    config: Config,
    hypers: Hypers,
    inputs: Array,
    labels: Array,
    classes: int,
    batch_size: int,
    rng: np.random.Generator,
) -> Draws:
    """Draw as many networks at a time as `_MOST` allows."""
    widest = max(inputs.shape[2], *config.hidden, classes)
    together = max(1, _MOST // (widest * inputs.shape[1]))
    parts = []
    for first in range(0, len(inputs), together):
        rows = slice(first, first + together)
        x = np.swapaxes(np.asarray(inputs[rows], np.float64), 1, 2)
        layers, outputs = _forward(config, hypers, x, classes, rng)
        is_label = np.arange(classes)[:, None] == np.asarray(labels)[rows, None, :]
        delta = softmax(outputs[-1], axis=1) - is_label
        delta_rms, gradient_rms = _backward(delta, layers, batch_size, config.reduction, rng)
        signal = np.stack([_rms(x) for x in outputs], axis=1)
        parts.append(Draws(signal, delta_rms, gradient_rms, *_shares(layers, steepest_slope(config.activation))))
    return Draws(*map(np.concatenate, zip(*parts, strict=True)))


def _forward(
    config: Config, hypers: Hypers, x: Array, classes: int, rng: np.random.Generator
) -> tuple[list[_Layer], list[Array]]:
    """All layers, and the outputs of each; of the last, the logits."""
    phi = _value_and_slope(config.activation)
    norms: dict[str, _Norm] = {}

    def norm_if_here(place: str, x: Array) -> Array:
        if config.norm == "none" or config.norm_at != place:
            return x
        norms[place] = _normalised(x, axis=-1 if config.norm == "batch" else -2, epsilon=config.norm_epsilon)
        return norms[place].unit

    def dense(x: Array, width: int, named: Named, draw_weights: bool) -> tuple[Array, Array, Array | None]:
        std = np.full((len(x), 1, 1), hypers.sigma_w * np.sqrt(weight_variance(named, x.shape[1], width)))
        weights = rng.standard_normal((len(x), width, x.shape[1])) if draw_weights else None
        z = _mixed(x, width, rng) if weights is None else weights @ x
        bias = hypers.sigma_b * config.bias * rng.standard_normal((len(x), width, 1))
        if is_data_dependent(named):
            std = hypers.sigma_w / z.std(axis=(1, 2), keepdims=True)
        return std * z + bias, std, weights

    x = norm_if_here("network_input", x)
    layers, outputs = [], []
    for width in config.hidden:
        below, norms = x, {}
        inputs = norm_if_here("layer_inputs", below)
        z, std, weights = dense(inputs, width, config.initializer, inputs.shape[1] <= inputs.shape[2])
        h, slope = phi(norm_if_here("pre_activation", z))
        x = norm_if_here("post_activation", h)
        alpha = None
        if config.branch != "plain" and x.shape == below.shape:
            alpha = 0.0 if config.branch == "rezero" else 1.0
            x = below + alpha * x
        layers.append(_Layer(inputs, std, weights, slope, norms, alpha))
        outputs.append(x)
    logits, std, weights = dense(x, classes, config.output_initializer or config.initializer, draw_weights=True)
    return [*layers, _Layer(x, std, weights, 1.0, {}, None)], [*outputs, logits]


def _backward(
    g: Array, layers: list[_Layer], batch_size: int, reduction: str, rng: np.random.Generator
) -> tuple[Array, Array]:
    """RMS of δ and of the weight gradient of all layers, from the loss's gradient with respect to the logits."""
    deltas: list[Array] = []
    gradients: list[Array] = []
    if reduction == "mean":
        g = g / batch_size
    for layer in reversed(layers):
        delta = g if layer.alpha is None else layer.alpha * g
        delta = _through(layer.norms.get("post_activation"), delta) * layer.slope
        delta = _through(layer.norms.get("pre_activation"), delta)
        deltas.insert(0, _rms(delta))
        gradients.insert(0, _gradient_rms(layer.inputs, delta, batch_size))
        if layer is not layers[0]:
            fan_in, weights = layer.inputs.shape[1], layer.weights
            below = _mixed(delta, fan_in, rng) if weights is None else np.swapaxes(weights, 1, 2) @ delta
            below = _through(layer.norms.get("layer_inputs"), layer.weight_std * below)
            g = below if layer.alpha is None else below + g
    return np.stack(deltas, axis=1), np.stack(gradients, axis=1)


def _shares(layers: list[_Layer], steepest: float) -> tuple[Array, Array]:
    """Dead units and saturated ones; none in the last layer."""
    flat = [np.abs(layer.slope) for layer in layers[:-1]]
    dead = [np.mean(np.all(slope == 0, axis=-1), axis=-1) for slope in flat]
    saturated = [np.mean(slope <= SATURATED_SLOPE * steepest, axis=(-2, -1)) for slope in flat]
    none = np.zeros(len(layers[-1].inputs))
    return np.stack([*dead, none], axis=1), np.stack([*saturated, none], axis=1)


def _gradient_rms(inputs: Array, delta: Array, batch_size: int) -> Array:
    """√(Σ_ab (h_a·h_b)(δ_a·δ_b) / (fan_in fan_out)) over the pairs of a batch, scaled up to one of batch_size."""
    pairs = _gram(inputs) * _gram(delta)
    b = pairs.shape[1]
    own = np.trace(pairs, axis1=1, axis2=2)
    others = pairs.sum(axis=(1, 2)) - own
    square = own * batch_size / b + others * (batch_size * (batch_size - 1) / max(1, b * (b - 1)))
    return np.sqrt(np.maximum(square, 0) / (inputs.shape[1] * delta.shape[1]))


def _mixed(x: Array, width: int, rng: np.random.Generator) -> Array:
    """G x with G_ij ~ N(0, 1), [draws, units, B] → [draws, width, B]; through the covariance where that is smaller."""
    draws, units, b = x.shape
    if units <= b:
        return rng.standard_normal((draws, width, units)) @ x
    size = np.abs(x).max(axis=(1, 2), keepdims=True)
    gram = _gram(x / np.where(size > 0, size, 1))
    mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / b
    root = np.linalg.cholesky(gram / np.where(mean > 0, mean, 1) + _JITTER * np.eye(b))
    return size * np.sqrt(mean) * (rng.standard_normal((draws, width, b)) @ np.swapaxes(root, 1, 2))


def _gram(x: Array) -> Array:
    return np.swapaxes(x, 1, 2) @ x


def _rms(x: Array) -> Array:
    size = np.abs(x).max(axis=(1, 2), keepdims=True)
    return size[:, 0, 0] * np.sqrt(np.mean(np.square(x / np.where(size > 0, size, 1)), axis=(1, 2)))


def _normalised(x: Array, axis: int, epsilon: float) -> _Norm:
    deviation = np.sqrt(x.var(axis=axis, keepdims=True) + epsilon)
    return _Norm(axis, (x - x.mean(axis=axis, keepdims=True)) / deviation, deviation)


def _through(norm: _Norm | None, g: Array) -> Array:
    """The gradient below a normalisation, from that above it."""
    if norm is None:
        return g
    along = np.mean(g * norm.unit, axis=norm.axis, keepdims=True)
    return (g - g.mean(axis=norm.axis, keepdims=True) - norm.unit * along) / norm.deviation


@lru_cache(maxsize=64)
def _value_and_slope(named: Named) -> Callable[[Array], tuple[Array, Array]]:
    """φ and φ′ of a float64 array."""
    phi = activation(named)
    both = jax.jit(lambda u: jax.jvp(phi, (u,), (jnp.ones_like(u),)))

    def apply(u: Array) -> tuple[Array, Array]:
        blocks = np.resize(u, (-(-u.size // _BLOCK), _BLOCK))
        with jax.enable_x64(True):
            value, slope = (np.stack(column) for column in zip(*map(both, blocks), strict=True))
        return tuple(x.ravel()[: u.size].reshape(u.shape) for x in (value, slope))  # type: ignore[return-value]

    return apply
