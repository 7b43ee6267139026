"""Theory of the Jacobian J = D_L W_L … D_1 W_1 of a random network: lengths, eigenvalues of JJᵀ, and correlations.

A layer's slopes D are here 1 with the probability `active` and else 0: ½ for ReLU, 1 for linear units. A change of
sign of a unit's weights switches it on or off and changes no length; so for ReLU without biases the slopes are
independent of all lengths, at any width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma, polygamma
from scipy.stats import binom

from vgjax.activations import Activation
from vgjax.theory.gaussian import mean, product, slope_product
from vgjax.theory.mean_field import chi1, length_map


def fourth_moment_growth(widths: ArrayLike, active: float = 0.5) -> np.ndarray:
    """E‖Ju‖⁴ / (E‖Ju‖²)² grows by 1 + (3/p − 1)/n in a layer of n units: 1 + 5/n for ReLU. Gaussian weights; exact.

    Args:
      widths: n of each layer [units].
      active: p, the probability of a slope of 1.

    Source: Hanin 2018, 1801.03744.

    >>> fourth_moment_growth([10, 50]).tolist()
    [1.5, 1.1]
    """
    return 1 + (3 / active - 1) / np.asarray(widths, np.float64)


def log_length_variance(widths: ArrayLike, active: float = 0.5) -> np.ndarray:
    """What a layer adds to Var ln‖Ju‖²: E[ψ₁(K/2)] + Var ψ(K/2), K ~ Bin(n, p) units; 5/n for wide ReLU layers.

    ‖Ju‖² gains a factor ∝ χ²_K, whose logarithm has the mean ψ(K/2) + ln 2 and the variance ψ₁(K/2). Gaussian weights;
    exact, given that some unit is active.

    Args:
      widths, active: as in `fourth_moment_growth`.

    Source: the law of Hanin & Nica 2018, 1812.05994; approximately 5/n in Hanin 2018, 1801.03744.

    >>> log_length_variance([1000]).round(5).tolist()
    [0.00502]
    """
    variances = []
    for n in np.asarray(widths).ravel():
        k = np.arange(1, n + 1)
        share = binom.pmf(k, n, active) / (1 - binom.pmf(0, n, active))
        centre = share @ digamma(k / 2)
        variances.append(share @ polygamma(1, k / 2) + share @ (digamma(k / 2) - centre) ** 2)
    return np.reshape(variances, np.shape(widths))


def eigenvalue_spread(depth: int, active: float, orthogonal: bool, width: float = np.inf) -> np.ndarray:
    """E[tr(JJᵀ)²/n] / E[(tr JJᵀ/n)²] − 1, the variance of JJᵀ's eigenvalues over their mean squared, layer by layer.

    At infinite width L(μ₂/μ₁² − 1 − s₁), where μ_k = E[φ′²ᵏ], so that μ₂/μ₁² = 1/p, and s₁ = −1 for Gaussian weights,
    0 for orthogonal ones. At width n by the second moments of W B Wᵀ, exact.

    Args:
      depth: L.
      active: p, the probability of a slope of 1; the others are 0.
      orthogonal: Haar-distributed orthogonal weights instead of Gaussian ones.
      width: n, of all layers and the inputs [units].

    Returns:
      For 1 … L layers, [L].

    Source: Pennington et al. 2017, 1711.04735; at width n our own.

    >>> float(eigenvalue_spread(10, 0.5, orthogonal=False)[-1])
    20.0
    """
    own, square = 1.0, 1.0  # E[(tr B/n)²] and E[tr B²/n], B = JJᵀ of the layers so far, of mean 1
    spreads = []
    for _ in range(depth):
        if orthogonal:
            diagonal = (own + 2 * square / width) / (1 + 2 / width)  # E[Σ_i (W B Wᵀ)_ii² / n]
        else:
            diagonal = own + 2 * square / width
            own, square = own + 2 * square / width**2, own + (1 + 1 / width) * square
        own, square = own + (1 / active - 1) * diagonal / width, square + (1 / active - 1) * diagonal
        spreads.append(square / own - 1)
    return np.array(spreads)


def eigenvalue_density(x: ArrayLike, depth: int, active: float, orthogonal: bool) -> np.ndarray:
    """Density of the eigenvalues of JJᵀ over their mean, at infinite width, without the 1 − p of them that are 0.

    By free probability x = (1 + M)/(M S(M)), S of JJᵀ being the product over layers of S_D = p(1 + z)/(p + z) and
    S_W = 1/(1 + z) for Gaussian weights, 1 for orthogonal ones; then ρ(x) = −Im M(x)/(π x). M is followed from far
    above the axis, where it is 1/x, down to it.

    Args:
      x: eigenvalues, of mean 1; positive, [n].
      depth, active, orthogonal: as in `eigenvalue_spread`; not orthogonal and linear at once, which is one point.

    Returns:
      ρ(x), [n].

    Source: Pennington et al. 2017, 1711.04735; for linear Gaussian layers, the Fuss–Catalan law.

    >>> eigenvalue_density([1.0], 1, 1.0, orthogonal=False).round(6).tolist()  # √(4/x − 1)/2π, Marchenko–Pastur
    [0.275664]
    """
    x = np.asarray(x, np.float64)
    gaussian = 0 if orthogonal else depth
    heights = np.geomspace(1e3 * x.max(), 1e-12 * x.min(), 1500)
    m = 1 / (x + 1j * heights[0])
    for height in heights:
        z = x + 1j * height
        for _ in range(4):  # Newton's method for ln x(M) = ln z
            value = (1 + m) ** (1 + gaussian - depth) * (1 + m / active) ** depth / m
            slope = (1 + gaussian - depth) / (1 + m) + depth / (active + m) - 1 / m
            m = m - np.log(value / z) / slope
    return np.maximum(-m.imag, 0) / (np.pi * x)


def input_gradient_correlation(
    inputs: ArrayLike, activation: str | Activation, variances: Sequence[float] | np.ndarray, residual: bool = False
) -> np.ndarray:
    """Correlation of an output's gradients ∂y/∂x at the first input and at every other, infinite width, no biases.

    Each layer multiplies δ_a·δ_b by χ_ab = σ_w² E[φ′(z_a)φ′(z_b)], or by 1 + χ_ab in a residual network h + φ(Wh). For
    ReLU χ_ab/χ_aa = 1 − θ_l/π. A residual network's E[h_a h_b] gains E[φ_a φ_b] and what the means have in common.

    Args:
      inputs: [B, n₀]. The gradients are those across the plane of the two inputs: in it they follow y itself.
      activation: name, import path or callable.
      variances: σ_w² of each hidden layer and of the output, from `layer_variances`, [L].
      residual: every hidden layer is h + φ(Wh), the first too.

    Returns:
      After 1 … L − 1 hidden layers, [L − 1, B].

    Source: after Balduzzi et al. 2017, 1702.08591; with the actual angles, Poole et al. 2016, 1606.05340.

    >>> input_gradient_correlation(np.eye(2), "relu", [2.0, 2.0])[-1].round(9).tolist()
    [1.0, 0.5]
    """
    x = np.asarray(inputs, np.float64)
    own, both, centre = np.mean(x**2, 1), x @ x[0] / x.shape[1], np.mean(x, 1)  # E[h²], E[h h_1] and E[h] over units
    gains = []
    for variance in variances[:-1]:
        q, c = variance * own, np.clip(both / np.sqrt(own * own[0]), -1, 1)
        gain, gain_own = variance * slope_product(q, q[0], c, activation), np.asarray(chi1(q, variance, activation))
        common, square = product(q, q[0], c, activation), np.asarray(length_map(q, 1.0, 0.0, activation))
        if residual:
            shift = np.asarray(mean(q, activation))
            gain, gain_own = 1 + gain, 1 + gain_own
            common = both + common + centre * shift[0] + shift * centre[0]
            square, centre = own + square + 2 * centre * shift, centre + shift
        own, both = square, common
        gains.append(gain / np.sqrt(gain_own * gain_own[0]))
    return np.cumprod(gains, axis=0)
