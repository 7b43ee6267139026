"""What an initializer's draws say of it: the law of its variance, its spectrum, whether its keys matter.

Intervals are of independent draws. Each of the `QUESTIONS` is decided at the level 0.05 / QUESTIONS, over all shapes
together, so that an initializer without fault passes all of them 95 times out of 100.
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
    "{}, whatever the fans": lambda fan_in, fan_out: 1.0,
}


class Draws(NamedTuple):
    """Matrices of one initializer, each shape with keys of its own."""

    matrices: dict[tuple[int, int], np.ndarray]  # float64 [draws, fan_in, fan_out]
    refused: dict[str, str]  # precision → why it gives none
    repeatable: bool  # whether the same key gives the same matrix
    distinct: int  # how many of the first shape's `N_DRAWS` keys give a matrix of their own

    @property
    def ignores_key(self) -> bool:
        """Whether all keys give the same matrix."""
        return self.distinct == 1

    @property
    def constant(self) -> bool:
        """Whether all elements of a matrix are the same number."""
        return all(np.ptp(w[0]) == 0 for w in self.matrices.values())


def draw(named: str | Initializer) -> Draws:
    """Matrices of every shape of `SHAPES` in float32, and one in each other precision.

    Raises:
      ValueError: the initializer raises, or gives another shape or dtype than it was asked for, NaN or infinity.
    """
    init = initializer(named)
    matrices = {}
    for i, shape in enumerate(SHAPES):
        keys = [jax.random.key(i * N_DRAWS + j) for j in range(N_DRAWS)]
        matrices[shape] = np.stack([_one(named, init, key, shape, "float32") for key in keys]).astype(np.float64)
    again = _one(named, init, jax.random.key(0), SHAPES[0], "float32")
    refused = {}
    for precision in PRECISIONS[1:]:
        try:
            init(jax.random.key(0), SHAPES[1], jnp.dtype(precision))
        except Exception as error:  # as JAX's own orthogonal does, whose QR has no half precision
            refused[precision] = next(iter(str(error).splitlines()), type(error).__name__)
        else:
            _one(named, init, jax.random.key(0), SHAPES[1], precision)
    first = matrices[SHAPES[0]]
    return Draws(matrices, refused, np.array_equal(again, first[0]), len({w.tobytes() for w in first}))


def _one(named: str | Initializer, init: Initializer, key: jax.Array, shape: tuple[int, int], dtype: str) -> np.ndarray:
    drawn: Any = attempt("initializer", named, lambda: jnp.asarray(init(key, shape, jnp.dtype(dtype))))
    got, wanted = (f"{kind}[{','.join(map(str, n))}]" for kind, n in ((drawn.dtype, drawn.shape), (dtype, shape)))
    if got != wanted:
        raise ValueError(f"initializer {text_of(named)!r} gives {got}; allowed: {wanted}")
    if not bool(jnp.all(jnp.isfinite(drawn))):
        raise ValueError(f"initializer {text_of(named)!r} gives NaN or infinity in {wanted}; allowed: finite numbers")
    return np.asarray(drawn)


def _parts(matrices: np.ndarray) -> Sequence[np.ndarray]:
    """Independent parts: the draws; where they are all the same, groups of columns of the one that there is."""
    return np.split(matrices[0], N_DRAWS, axis=1) if (matrices == matrices[0]).all() else list(matrices)


def means(draws: Draws) -> dict[tuple[int, int], Estimate]:
    """Mean of W for each shape, with intervals that hold for all shapes together."""
    values = [[part.mean() for part in _parts(w)] for w in draws.matrices.values()]
    return dict(zip(SHAPES, _together(np.transpose(values)), strict=True))


def variances(draws: Draws) -> dict[tuple[int, int], Estimate]:
    """Var(W) for each shape, with intervals that hold for all shapes together."""
    return dict(zip(SHAPES, _together(_variances(draws)), strict=True))


def _variances(draws: Draws) -> np.ndarray:
    """[draws, shapes]."""
    return np.transpose([[np.mean((part - w.mean()) ** 2) for part in _parts(w)] for w in draws.matrices.values()])


def _together(values: np.ndarray) -> list[Estimate]:
    """An interval a column, all of them right with a probability of 1 − LEVEL."""
    return [_interval(column, LEVEL / values.shape[1]) for column in values.T]


def _interval(values: np.ndarray, level: float) -> Estimate:
    found, rounding = estimate(values, 1 - level), float(np.finfo(np.float32).eps * np.abs(values).max())
    return found._replace(low=found.low - rounding, high=found.high + rounding)


def factor(draws: Draws, formula: Variance) -> Estimate | None:
    """k of Var(W) = k · formula(fan_in, fan_out), or None: no k lies within the intervals of all shapes."""
    ratios = _variances(draws) / [formula(*shape) for shape in SHAPES]
    each = _together(ratios)
    if max(one.low for one in each) > min(one.high for one in each):
        return None
    return _interval(ratios.mean(1), LEVEL)


def laws(draws: Draws) -> dict[str, Estimate]:
    """The laws of `LAWS` that fit, and k of each."""
    found = {text: factor(draws, law) for text, law in LAWS.items()}
    return {text: k for text, k in found.items() if k is not None}


class Likeness(NamedTuple):
    """A built-in initializer whose variance is proportional to this one's."""

    name: str
    ratio: Estimate  # this one's variance over its
    swapped: bool  # after fan_in and fan_out have changed places

    @property
    def agrees(self) -> bool:
        """Whether the variances are the same, as far as the draws can tell."""
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


def nearest_builtin(draws: Draws) -> Likeness | None:
    """The built-in whose variance formula agrees within the intervals, or is nearest among those proportional to it.

    Of several with one formula, the one whose elements are spread alike (kurtosis). An amplitude that the built-in
    takes as its argument is set to what fits: `normal(0.03)`.
    """
    found = []
    for name in reversed(INITIALIZERS):  # the plain ones before those they are special cases of
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
    """Singular values of one shape."""

    singular: np.ndarray  # over their root mean square, [draws, min(fan_in, fan_out)]
    over_shuffled: Estimate  # E[s⁴]/E[s²]² over that of the same elements in random order

    @property
    def all_equal(self) -> bool:
        """Whether the matrices are (semi-)orthogonal up to a factor, within float32's rounding."""
        return bool(np.ptp(self.singular) < np.finfo(np.float32).eps * self.singular.shape[1])

    @property
    def as_independent(self) -> bool:
        """Whether the spectrum is that of independent elements."""
        return self.over_shuffled.low <= 1 <= self.over_shuffled.high


def spectrum(draws: Draws, shape: tuple[int, int]) -> Spectrum:
    """Singular values, and whether they are spread as those of independent elements (Marchenko & Pastur 1967).

    Shuffling keeps the elements and destroys what ties them together, so the comparison holds for every distribution
    and size; each draw is compared with its own shuffled elements.
    """
    matrices = draws.matrices[shape]
    singular = _singular(matrices)
    rng = np.random.default_rng(0)
    shuffled = _singular(rng.permuted(matrices.reshape(len(matrices), -1), axis=1).reshape(matrices.shape))
    logs = np.log(_spread(singular) / _spread(shuffled))
    found = _interval(logs, LEVEL / 2)  # two shapes are looked at
    if draws.ignores_key:  # one matrix: where would one more shuffled one lie?
        half = (found.high - found.value) * np.sqrt(len(logs) + 1)
        found = found._replace(low=found.value - half, high=found.value + half)
    value, low, high = (float(np.exp(x)) for x in found[:3])
    over = Estimate(value, low, high, 1 if draws.ignores_key else len(logs))
    return Spectrum(singular, over)


def _singular(matrices: np.ndarray) -> np.ndarray:
    values = np.linalg.svd(matrices, compute_uv=False)
    return values / np.sqrt(np.mean(values**2, axis=1, keepdims=True))


def _spread(singular: np.ndarray) -> np.ndarray:
    return np.mean(singular**4, axis=1) / np.mean(singular**2, axis=1) ** 2


def marchenko_pastur(s: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Density of the singular values over their root mean square, for independent elements of a large matrix.

    √((b² − s²)(s² − a²)) / (π λ s) between a, b = 1 ∓ √λ, λ = min/max of the fans, in units of which the RMS is 1.
    """
    ratio = min(shape) / max(shape)
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    inside = np.maximum((high - s**2) * (s**2 - low), 0)
    return np.sqrt(inside) / (np.pi * ratio * np.maximum(s, 1e-9))


def correlation(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Estimate:
    """RMS over disjoint pairs of r·√N, r the correlation of two matrices of N elements: 1 where they are independent.

    The interval is that of χ²: r·√N is normal with variance 1 for independent matrices.
    """
    z = [np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size) for a, b in pairs]
    total, n = float(np.sum(np.square(z))), len(z)
    low, high = (np.sqrt(total / scipy_stats.chi2.ppf(q, n)) for q in (1 - LEVEL / 2, LEVEL / 2))
    return Estimate(float(np.sqrt(total / n)), float(low), float(high), n)


def key_correlation(draws: Draws) -> Estimate:
    """`correlation` of draws from different keys, over all shapes."""
    return correlation([(w[i], w[i + 1]) for w in draws.matrices.values() for i in range(0, N_DRAWS, 2)])
