"""Draw an initializer, and find its law of variance, its spectrum, and whether its key matters.

Intervals are over independent draws. Each of the `QUESTIONS` is tested at the level 0.05 / len(QUESTIONS), for all
shapes together, so that a correct initializer passes all of them in 95 % of examinations.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats as scipy_stats

from vgjax.analysis import Estimate, estimate
from vgjax.initializers import INITIALIZERS, Initializer, initializer
from vgjax.names import attempt, text_of

SHAPES = ((128, 128), (256, 64), (64, 256), (256, 256))  # square, tall, wide, and a larger square
N_DRAWS = 32
QUESTIONS = ("mean", "variance", "spectrum", "keys", "layers")
LEVEL = 0.05 / len(QUESTIONS)
PRECISIONS = ("float32", "bfloat16", "float16")

Variance = Callable[[int, int], float]

LAWS: dict[str, Variance] = {
    "{}/fan_in": lambda fan_in, fan_out: 1 / fan_in,
    "{}/fan_out": lambda fan_in, fan_out: 1 / fan_out,
    "2·{}/(fan_in + fan_out)": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "{}/max(fan_in, fan_out)": lambda fan_in, fan_out: 1 / max(fan_in, fan_out),
    "{}, independent of fan_in and fan_out": lambda fan_in, fan_out: 1.0,
}


class DrawnMatrices(NamedTuple):
    """Matrices that one initializer gave; every matrix has its own key."""

    matrices: dict[tuple[int, int], np.ndarray]  # float64 [draws, fan_in, fan_out]
    refused: dict[str, str]  # precision → the error that it raises
    repeatable: bool  # whether the same key gives the same matrix
    distinct: int  # number of different matrices among the `N_DRAWS` of the first shape

    @property
    def ignores_key(self) -> bool:
        """Whether all keys give the same matrix."""
        return self.distinct == 1

    @property
    def constant(self) -> bool:
        """Whether all elements of a matrix are the same number."""
        return all(np.ptp(w[0]) == 0 for w in self.matrices.values())


def draw(named: str | Initializer) -> DrawnMatrices:
    """Draw matrices of every shape of `SHAPES` in float32, and one in each other precision.

    Raises:
      ValueError: the initializer raises, or gives another shape or dtype than it was asked for, NaN or infinity.
    """
    init = initializer(named)
    matrices = {}
    for i, shape in enumerate(SHAPES):
        keys = [jax.random.key(i * N_DRAWS + j) for j in range(N_DRAWS)]
        matrices[shape] = np.stack([_draw_one(named, init, key, shape, "float32") for key in keys]).astype(np.float64)
    again = _draw_one(named, init, jax.random.key(0), SHAPES[0], "float32")
    refused = {}
    for precision in PRECISIONS[1:]:
        try:
            init(jax.random.key(0), SHAPES[1], jnp.dtype(precision))
        except Exception as error:  # JAX's orthogonal raises too: its QR has no half precision
            refused[precision] = next(iter(str(error).splitlines()), type(error).__name__)
        else:
            _draw_one(named, init, jax.random.key(0), SHAPES[1], precision)
    first = matrices[SHAPES[0]]
    return DrawnMatrices(matrices, refused, np.array_equal(again, first[0]), len({w.tobytes() for w in first}))


def _draw_one(
    named: str | Initializer, init: Initializer, key: jax.Array, shape: tuple[int, int], dtype: str
) -> np.ndarray:
    """Draw one matrix and check it."""
    drawn: Any = attempt("initializer", named, lambda: jnp.asarray(init(key, shape, jnp.dtype(dtype))))
    got, wanted = (f"{kind}[{','.join(map(str, n))}]" for kind, n in ((drawn.dtype, drawn.shape), (dtype, shape)))
    if got != wanted:
        raise ValueError(f"initializer {text_of(named)!r} gives {got}; allowed: {wanted}")
    if not bool(jnp.all(jnp.isfinite(drawn))):
        raise ValueError(f"initializer {text_of(named)!r} gives NaN or infinity in {wanted}; allowed: finite numbers")
    return np.asarray(drawn)


def _parts(matrices: np.ndarray) -> Sequence[np.ndarray]:
    """Independent parts: the draws, or groups of columns of the matrix if all draws are the same."""
    return np.split(matrices[0], N_DRAWS, axis=1) if (matrices == matrices[0]).all() else list(matrices)


def means(draws: DrawnMatrices) -> dict[tuple[int, int], Estimate]:
    """Mean of W for each shape; the intervals hold for all shapes together."""
    values = [[part.mean() for part in _parts(w)] for w in draws.matrices.values()]
    return dict(zip(SHAPES, _together(np.transpose(values)), strict=True))


def variances(draws: DrawnMatrices) -> dict[tuple[int, int], Estimate]:
    """Var(W) for each shape; the intervals hold for all shapes together."""
    return dict(zip(SHAPES, _together(_variances(draws)), strict=True))


def _variances(draws: DrawnMatrices) -> np.ndarray:
    """Var(W) of each draw, [draws, shapes]."""
    return np.transpose([[np.mean((part - w.mean()) ** 2) for part in _parts(w)] for w in draws.matrices.values()])


def _together(values: np.ndarray) -> list[Estimate]:
    """An interval for each column; all of them hold with a probability of 1 − LEVEL."""
    return [_interval(column, LEVEL / values.shape[1]) for column in values.T]


def _interval(values: np.ndarray, level: float) -> Estimate:
    """Mean with its interval, which is widened by float32's rounding."""
    found, rounding = estimate(values, 1 - level), float(np.finfo(np.float32).eps * np.abs(values).max())
    return found._replace(low=found.low - rounding, high=found.high + rounding)


def factor(draws: DrawnMatrices, formula: Variance) -> Estimate | None:
    """k of Var(W) = k · formula(fan_in, fan_out), or None if no k lies in the intervals of all shapes."""
    ratios = _variances(draws) / [formula(*shape) for shape in SHAPES]
    each = _together(ratios)
    if max(one.low for one in each) > min(one.high for one in each):
        return None
    return _interval(ratios.mean(1), LEVEL)


def laws(draws: DrawnMatrices) -> dict[str, Estimate]:
    """The laws of `LAWS` that fit → their factor k."""
    found = {text: factor(draws, law) for text, law in LAWS.items()}
    return {text: k for text, k in found.items() if k is not None}


class Likeness(NamedTuple):
    """A built-in initializer whose variance is proportional to this one's."""

    name: str
    ratio: Estimate  # variance of the examined initializer over that of the built-in one
    swapped: bool  # whether the built-in one's formula was used with fan_in and fan_out swapped

    @property
    def agrees(self) -> bool:
        """Whether the interval of the ratio contains 1."""
        return self.ratio.low <= 1 <= self.ratio.high

    def __str__(self) -> str:
        more = self.ratio.value - 1
        amount = f"{abs(more):.0%}".replace("%", " %")
        beside = (
            f"{self.ratio.value:.3g} times"
            if not 0.5 <= 1 + more <= 2
            else f"{amount} {'above' if more > 0 else 'below'}"
        )
        mistaken = " with fan_out mistaken for fan_in" if self.swapped else ""
        return f"{'' if self.agrees else f'{beside} '}{self.name}'s variance{mistaken}"


def nearest_builtin(draws: DrawnMatrices) -> Likeness | None:
    """The built-in initializer whose variance agrees within the intervals, or else the nearest proportional one.

    Among several with one formula it is the one with the nearest kurtosis. If the built-in takes an amplitude as its
    argument, the amplitude that fits is given: `normal(0.03)`.
    """
    found = []
    for name in reversed(INITIALIZERS):  # general ones come first; a special case replaces them only if it is nearer
        formula = INITIALIZERS[name].variance
        _, _, *arguments = inspect.signature(formula).parameters.values()
        for swapped in (False, True):
            law = (lambda a, b, f=formula: f(b, a)) if swapped else formula
            is_symmetric = all(formula(*shape) == law(*shape) for shape in SHAPES)
            if INITIALIZERS[name].data_dependent or (swapped and is_symmetric):
                continue
            ratio = factor(draws, law)
            if ratio is None or ratio.value == 0:
                continue
            like = Likeness(name, ratio, swapped)
            if len(arguments) == 1 and not like.agrees:
                fitting = arguments[0].default * math.sqrt(ratio.value)
                unity = Estimate(1.0, ratio.low / ratio.value, ratio.high / ratio.value, ratio.n)
                like = Likeness(f"{name}({fitting:.3g})", unity, swapped)
            found.append(like)
    if not found:
        return None
    near = min(found, key=lambda one: (not one.agrees, abs(math.log(one.ratio.value)), one.swapped))
    equals = [
        one
        for one in found
        if one.swapped == near.swapped
        and ((one.agrees and near.agrees) or math.isclose(one.ratio.value, near.ratio.value))
    ]
    mine = kurtosis(draws.matrices[SHAPES[0]])
    return min(equals, key=lambda one: abs(math.log(mine / _kurtosis_of(one.name))))


def _kurtosis_of(name: str) -> float:
    init = initializer(name)
    return kurtosis(
        np.stack([np.asarray(init(jax.random.key(i), SHAPES[0], jnp.float32), np.float64) for i in range(4)])
    )


def kurtosis(matrices: np.ndarray) -> float:
    """E[W⁴]/E[W²]² about the mean: 3 for a normal distribution, 1.8 for a uniform one."""
    return float(scipy_stats.kurtosis(matrices, axis=None, fisher=False))


class Spectrum(NamedTuple):
    """Singular values of the matrices of one shape."""

    singular: np.ndarray  # divided by their root mean square, [draws, min(fan_in, fan_out)]
    over_shuffled: Estimate  # E[s⁴]/E[s²]², divided by that of the same elements in random order

    @property
    def all_equal(self) -> bool:
        """Whether the matrices are (semi-)orthogonal up to a factor, within float32's rounding."""
        return bool(np.ptp(self.singular) < np.finfo(np.float32).eps * self.singular.shape[1])

    @property
    def as_independent(self) -> bool:
        """Whether the spectrum is that of independent elements."""
        return self.over_shuffled.low <= 1 <= self.over_shuffled.high


def spectrum(draws: DrawnMatrices, shape: tuple[int, int]) -> Spectrum:
    """Singular values, and how widely they are spread beside those of independent elements (Marchenko & Pastur 1967).

    Each draw is compared with its own elements in random order. Shuffling keeps the distribution of the elements and
    removes their dependence, so the comparison holds for every distribution and size.
    """
    matrices = draws.matrices[shape]
    singular = _singular(matrices)
    rng = np.random.default_rng(0)
    shuffled = _singular(rng.permuted(matrices.reshape(len(matrices), -1), axis=1).reshape(matrices.shape))
    logs = np.log(_spread(singular) / _spread(shuffled))
    found = _interval(logs, LEVEL / 2)  # two shapes are tested
    if draws.ignores_key:  # a single matrix: the interval for one more shuffled matrix
        half = (found.high - found.value) * np.sqrt(len(logs) + 1)
        found = found._replace(low=found.value - half, high=found.value + half)
    value, low, high = (float(np.exp(x)) for x in found[:3])
    over = Estimate(value, low, high, 1 if draws.ignores_key else len(logs))
    return Spectrum(singular, over)


def _singular(matrices: np.ndarray) -> np.ndarray:
    """Singular values of each draw, divided by their root mean square."""
    values = np.linalg.svd(matrices, compute_uv=False)
    return values / np.sqrt(np.mean(values**2, axis=1, keepdims=True))


def _spread(singular: np.ndarray) -> np.ndarray:
    """E[s⁴]/E[s²]² of each draw."""
    return np.mean(singular**4, axis=1) / np.mean(singular**2, axis=1) ** 2


def marchenko_pastur(s: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Density of the singular values over their root mean square, for independent elements of a large matrix.

    √((b² − s²)(s² − a²)) / (π λ s) between a, b = 1 ∓ √λ, with λ = min/max of fan_in and fan_out.
    """
    ratio = min(shape) / max(shape)
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    inside = np.maximum((high - s**2) * (s**2 - low), 0)
    return np.sqrt(inside) / (np.pi * ratio * np.maximum(s, 1e-9))


def correlation(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Estimate:
    """RMS of r·√N over disjoint pairs of matrices: 1 if they are independent.

    r is the correlation of two matrices of N elements. For independent matrices r·√N is normal with variance 1, so the
    interval is that of χ².
    """
    z = [np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size) for a, b in pairs]
    total, n = float(np.sum(np.square(z))), len(z)
    low, high = (np.sqrt(total / scipy_stats.chi2.ppf(q, n)) for q in (1 - LEVEL / 2, LEVEL / 2))
    return Estimate(float(np.sqrt(total / n)), float(low), float(high), n)


def key_correlation(draws: DrawnMatrices) -> Estimate:
    """`correlation` of draws with different keys, over all shapes."""
    return correlation([(w[i], w[i + 1]) for w in draws.matrices.values() for i in range(0, N_DRAWS, 2)])
