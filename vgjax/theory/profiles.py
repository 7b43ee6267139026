"""Mean-field theory over the actual layers: predictions for a plain network and given inputs.

The maps of `mean_field` are applied from layer to layer, at infinite width, to one example or to all pairs of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from vgjax.activations import Activation
from vgjax.initializers import Initializer, weight_variance
from vgjax.theory.gaussian import product, slope_product
from vgjax.theory.mean_field import chi1, length_map


def layer_variances(
    widths: Sequence[int],
    initializer: str | Initializer,
    output_initializer: str | Initializer | None = None,
    sigma_w: float = 1.0,
) -> np.ndarray:
    """σ_w² = fan_in · Var(W) of each layer.

    Args:
      widths: n₀ … n_L, inputs and classes included [units].
      initializer, output_initializer: of the weights, and of the last layer's if they differ.
      sigma_w: factor on every weight.

    Returns:
      σ_w², [L].

    >>> layer_variances([784, 512, 10], "he_normal").round(9).tolist()
    [2.0, 2.0]
    """
    named = [initializer] * (len(widths) - 2) + [output_initializer or initializer]
    variances = [weight_variance(w, *fans) for w, *fans in zip(named, widths, widths[1:], strict=False)]
    return sigma_w**2 * np.asarray(widths[:-1]) * np.array(variances)


class LengthProfile(NamedTuple):
    """One example through the actual layers at infinite width."""

    q: np.ndarray  # E[z²] of each layer, [L]
    chi1: np.ndarray  # χ₁ of each layer above, σ_w²(l+1) E[φ'(z_l)²]; NaN in the last layer, [L]


def length_profile(
    input_square: float, activation: str | Activation, variances: Sequence[float] | np.ndarray, sigma_b: float = 0.0
) -> LengthProfile:
    """q and χ₁ layer by layer, from an input of mean square ‖x‖²/n₀.

    Args:
      input_square: ‖x‖²/n₀.
      activation: name, import path or callable.
      variances: σ_w² of each layer, [L]; see `layer_variances`.
      sigma_b: standard deviation of the biases.

    >>> [round(x, 4) for x in length_profile(1.0, "relu", [2.0, 2.0, 1.0]).chi1.tolist()]
    [1.0, 0.5, nan]
    """
    q = [variances[0] * input_square + sigma_b**2]
    for variance in variances[1:]:
        q.append(float(length_map(q[-1], variance, sigma_b**2, activation)))
    growth = [float(chi1(below, variance, activation)) for below, variance in zip(q, variances[1:], strict=False)]
    return LengthProfile(np.array(q), np.array([*growth, np.nan]))


def dead_probability(widths: Sequence[int]) -> np.ndarray:
    """P(a ReLU network without biases is dead after layer l) = 1 − Π_{k≤l} (1 − 2^(−n_k)), for one example.

    Each unit is silent with probability ½, whatever its inputs; after a layer of silent units no signal passes.

    Args:
      widths: n₁ … n_L of the hidden layers [units].

    Returns:
      [L]; exact at every width, for independent weights of symmetric distribution.

    Source: Lu et al. 2019, 1903.06733.

    >>> dead_probability([1, 2]).tolist()
    [0.5, 0.625]
    """
    return -np.expm1(np.cumsum(np.log1p(-(0.5 ** np.asarray(widths, np.float64)))))


class PairProfile(NamedTuple):
    """Expected products of two examples a, b of a batch at each layer; the diagonal has a = b."""

    incoming: np.ndarray  # E[h_a·h_b]/n at each layer's inputs, the network's own inputs first, [L, B, B]
    preactivation: np.ndarray  # q_ab = E[z_a z_b], [L, B, B]
    slope: np.ndarray  # E[φ'(z_a) φ'(z_b)] at the hidden layers, [L − 1, B, B]


def pair_profile(
    inputs: ArrayLike, activation: str | Activation, variances: Sequence[float] | np.ndarray, sigma_b: float = 0.0
) -> PairProfile:
    """Length and correlation maps over the actual layers, from the actual inner products of the inputs.

    Args:
      inputs: scaled as the network sees them, [B, n₀].
      activation: name, import path or callable, between the layers.
      variances: σ_w² of each layer, from `layer_variances`, [L].
      sigma_b: standard deviation of the biases.

    Source: Poole et al. 2016, 1606.05340.
    """
    x = np.asarray(inputs, np.float64)
    incoming = [x @ x.T / x.shape[1]]
    preactivation = [variances[0] * incoming[0] + sigma_b**2]
    slope = []
    a, b = np.triu_indices(len(x))  # each pair once
    both = np.zeros((len(x), len(x)), int)
    both[a, b] = both[b, a] = np.arange(len(a))
    for variance in variances[1:]:
        q, length = preactivation[-1], np.diag(preactivation[-1])
        scale = np.sqrt(length[a]) * np.sqrt(length[b])
        c = np.divide(q[a, b], scale, out=np.ones_like(scale), where=scale > 0)  # a blank example: 1 with all
        incoming.append(np.asarray(product(length[a], length[b], c, activation))[both])
        slope.append(np.asarray(slope_product(length[a], length[b], c, activation))[both])
        preactivation.append(variance * incoming[-1] + sigma_b**2)
    return PairProfile(np.array(incoming), np.array(preactivation), np.array(slope).reshape(-1, len(x), len(x)))


def _error_products(labels: np.ndarray, q: np.ndarray, classes: int, n_draws: int = 1000) -> np.ndarray:
    """E[(p_a−y_a)·(p_b−y_b)] of the softmax p over random logits with E[z_a z_b] = q_ab, by a fixed set of draws.

    The draws matter where logits are of order 1: examples then err together, and their gradients add up.
    """
    eigenvalues, eigenvectors = np.linalg.eigh(q)
    root = eigenvectors * np.sqrt(np.maximum(eigenvalues, 0)) @ eigenvectors.T  # symmetric, hence unique
    logits = np.random.default_rng(0).standard_normal((n_draws * classes, len(q))) @ root.T
    p = softmax(logits.reshape(n_draws, classes, -1), axis=1).reshape(n_draws * classes, -1) - 1 / classes
    return np.equal.outer(labels, labels) - 1 / classes + p.T @ p / n_draws  # E[p] = 1/classes, whatever the label


def delta_products(
    labels: np.ndarray, pairs: PairProfile, variances: Sequence[float] | np.ndarray, classes: int
) -> np.ndarray:
    """E[δ_a·δ_b] over the units of each layer, for the sum of softmax cross-entropies, [L, B, B].

    Args:
      labels: class of each example, [B].
      pairs: of the signals.
      variances: σ_w² of each layer, [L].
      classes: number of logits.
    """
    deltas = [_error_products(labels, pairs.preactivation[-1], classes)]
    for variance, slope in zip(variances[:0:-1], pairs.slope[::-1], strict=True):
        deltas.insert(0, variance * slope * deltas[0])
    return np.array(deltas)


class Profile(NamedTuple):
    """Root mean squares of each layer at initialization, expected over the weights, [L]."""

    activation_rms: np.ndarray  # √E[h²] over units and examples; of the last layer, the logits
    delta_rms: np.ndarray  # √E[δ²], δ = ∂loss/∂z [loss / unit of z]
    gradient_rms: np.ndarray  # √E[(∂loss/∂W)²] [loss / weight]


def predicted_profile(
    inputs: ArrayLike,
    labels: ArrayLike,
    widths: Sequence[int],
    activation: str | Activation,
    initializer: str | Initializer,
    output_initializer: str | Initializer | None = None,
    sigma_w: float = 1.0,
    sigma_b: float = 0.0,
    reduction: str = "sum",
) -> Profile:
    """Activations, δ and weight gradients of a plain network of wide layers, for softmax cross-entropy on a batch.

    RMS²_l = Σ_ij (δ^l_i·δ^l_j) (h^{l−1}_i·h^{l−1}_j) / (n_{l−1} n_l), where going back from (p−y_i)·(p−y_j) each layer
    multiplies δ_i·δ_j by n_l Var(W^{l+1}) E[φ'(z_i)φ'(z_j)]. With small logits p is 1/classes. Terms of order
    classes/n_l and L/n_l are left out: logits of order 1 from a narrow last hidden layer make the gradient larger.
    A batch of one is the profile of one example.

    Args:
      inputs: a batch scaled as the network sees it, [B, n₀].
      labels: class of each example, integers, [B].
      widths: n₀ … n_L, inputs and classes included [units].
      activation, initializer, output_initializer, sigma_w, sigma_b: as in `layer_variances` and `pair_profile`.
      reduction: "sum" or "mean" of the examples' losses.

    Returns:
      [L] each.

    Raises:
      ValueError: shapes, labels or reduction do not fit.

    Source: Schoenholz et al. 2016, 1611.01232 (gradient independence), with the double sum over pairs of examples.

    >>> rms = predicted_profile(np.eye(2) / 100, [0, 1], [2, 16, 2], "linear", "lecun_normal").gradient_rms
    >>> [round(value, 6) for value in rms.tolist()]
    [0.001768, 0.005]
    """
    x, y, classes = np.asarray(inputs, np.float64), np.asarray(labels), widths[-1]
    if x.ndim != 2 or y.shape != x.shape[:1] or x.shape[1] != widths[0]:
        raise ValueError(f"inputs {x.shape} and labels {y.shape} do not fit; allowed: [B, {widths[0]}] and [B]")
    if y.size == 0 or y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels are not allowed; allowed: some, from 0 to {classes - 1}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction {reduction!r} is not allowed; allowed: sum, mean")
    variances = layer_variances(widths, initializer, output_initializer, sigma_w)
    pairs = pair_profile(x, activation, variances, sigma_b)
    deltas = delta_products(y, pairs, variances, classes)
    scale = 1 / len(x) if reduction == "mean" else 1.0
    gradient = [np.sum(d * h) / n for d, h, n in zip(deltas, pairs.incoming, widths[1:], strict=True)]
    delta = [np.mean(np.diag(d)) / n for d, n in zip(deltas, widths[1:], strict=True)]
    activation_square = [np.mean(np.diag(h)) for h in (*pairs.incoming[1:], pairs.preactivation[-1])]
    return Profile(np.sqrt(activation_square), scale * np.sqrt(delta), scale * np.sqrt(gradient))
