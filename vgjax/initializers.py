"""Initializers of a weight matrix: name → factory, variance formula, source.

Each factory returns JAX's own kind of initializer, ``f(key, shape, dtype) -> array`` for ``shape = (fan_in, fan_out)``,
and beside it stands Var(W) as a function of the fans, from which theory takes σ_w² = fan_in · Var(W).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.nn import initializers as jinit

from vgjax.names import Entry, lookup, nearest, resolve

Initializer = Callable[..., jax.Array]


@dataclass(frozen=True)
class InitializerEntry(Entry):
    """A row: `variance(fan_in, fan_out, *args, **kwargs)` is Var(W) for the arguments of `make`.

    `data_dependent` marks an initializer whose draws are rescaled layer by layer on the first batch (LSUV); the
    variance then says what the draws had before.
    """

    variance: Callable[..., float]
    data_dependent: bool = False


def uniform(limit: float = 0.05) -> Initializer:
    """W ~ U(−limit, limit), MXNet's ``Uniform(scale)``; note that JAX's own ``uniform(s)`` is U[0, s)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def mxnet_xavier(rnd_type: str = "uniform", factor_type: str = "avg", magnitude: float = 3.0) -> Initializer:
    """MXNet's ``Xavier``: U(±√(m/factor)) or N(0, m/factor), factor the fan_in, the fan_out or their mean.

    Raises:
      ValueError: rnd_type or factor_type is not one of MXNet's.
    """
    _choose("rnd_type", rnd_type, ("uniform", "gaussian"))
    _choose("factor_type", factor_type, ("in", "out", "avg"))
    scale, distribution = (magnitude / 3, "uniform") if rnd_type == "uniform" else (magnitude, "normal")
    mode: Any = f"fan_{factor_type}"
    return jinit.variance_scaling(scale, mode, cast(Any, distribution))


def _xavier_variance(
    fan_in: int, fan_out: int, rnd_type: str = "uniform", factor_type: str = "avg", magnitude: float = 3.0
) -> float:
    factor = {"in": fan_in, "out": fan_out, "avg": (fan_in + fan_out) / 2}[factor_type]
    return magnitude / factor / (3 if rnd_type == "uniform" else 1)


def _choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is not allowed; {nearest(str(value), allowed)}")


_GLOROT = "Glorot & Bengio 2010"
_HE = "He et al. 2015, 1502.01852"
_LECUN = "LeCun et al. 1998, Efficient BackProp"

INITIALIZERS: dict[str, InitializerEntry] = {
    "uniform": InitializerEntry(
        uniform, "U(±limit); limit 0.05", "MXNet Uniform", lambda fan_in, fan_out, limit=0.05: limit**2 / 3
    ),
    "normal": InitializerEntry(
        lambda stddev=0.01: jinit.normal(stddev),
        "N(0, stddev²); stddev 0.01",
        "jax.nn.initializers.normal",
        lambda fan_in, fan_out, stddev=0.01: stddev**2,
    ),
    "mean_field": InitializerEntry(
        lambda: jinit.variance_scaling(1.0, "fan_in", "normal"),
        "N(0, 1/fan_in), not truncated; σ_w by --sigma-w",
        "Poole et al. 2016, 1606.05340",
        lambda fan_in, fan_out: 1 / fan_in,
    ),
    "mxnet_xavier": InitializerEntry(
        mxnet_xavier, "U(±√(m/factor)); rnd_type, factor_type, magnitude", "MXNet Xavier", _xavier_variance
    ),
    "glorot_uniform": InitializerEntry(
        jinit.glorot_uniform, "U(±√(6/(fan_in+fan_out)))", _GLOROT, lambda fan_in, fan_out: 2 / (fan_in + fan_out)
    ),
    "glorot_normal": InitializerEntry(
        jinit.glorot_normal,
        "truncated N(0, 2/(fan_in+fan_out))",
        _GLOROT,
        lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    ),
    "he_uniform": InitializerEntry(jinit.he_uniform, "U(±√(6/fan_in))", _HE, lambda fan_in, fan_out: 2 / fan_in),
    "he_normal": InitializerEntry(jinit.he_normal, "truncated N(0, 2/fan_in)", _HE, lambda fan_in, fan_out: 2 / fan_in),
    "lecun_uniform": InitializerEntry(
        jinit.lecun_uniform, "U(±√(3/fan_in))", _LECUN, lambda fan_in, fan_out: 1 / fan_in
    ),
    "lecun_normal": InitializerEntry(
        jinit.lecun_normal, "truncated N(0, 1/fan_in)", _LECUN, lambda fan_in, fan_out: 1 / fan_in
    ),
    "orthogonal": InitializerEntry(
        lambda gain=1.0: jinit.orthogonal(gain),
        "gain · a (semi-)orthogonal matrix",
        "Saxe et al. 2013, 1312.6120",
        lambda fan_in, fan_out, gain=1.0: gain**2 / max(fan_in, fan_out),
    ),
    "lsuv": InitializerEntry(
        lambda: jinit.orthogonal(1.0),
        "orthogonal, then each layer scaled to unit variance on the first batch",
        "Mishkin & Matas 2016, 1511.06422",
        lambda fan_in, fan_out: 1 / max(fan_in, fan_out),
        data_dependent=True,
    ),
}


def initializer(named: str | Initializer) -> Initializer:
    """The initializer ``f(key, shape, dtype)`` of that name, import path, or the callable itself."""
    return resolve("initializer", INITIALIZERS, named)


def is_data_dependent(named: str | Initializer) -> bool:
    """Whether the initializer's draws are to be rescaled on the first batch."""
    return _is_tabled(named) and INITIALIZERS[lookup("initializer", INITIALIZERS, str(named)).name].data_dependent


def weight_variance(named: str | Initializer, fan_in: int, fan_out: int, n_samples: int = 10) -> float:
    """Var(W) for one layer: by the row's formula, or measured on `n_samples` draws of a user's own initializer.

    Args:
      named: name, import path or callable.
      fan_in, fan_out: the shape of the weight matrix.
      n_samples: matrices drawn (keys 0, 1, …) where there is no formula.

    Returns:
      E[W²], dimensionless (σ_w² = fan_in · Var(W)).
    """
    if _is_tabled(named):
        spec = lookup("initializer", INITIALIZERS, str(named))
        return INITIALIZERS[spec.name].variance(fan_in, fan_out, *spec.args, **spec.kwargs)
    init = initializer(named)
    draws = jnp.stack([init(jax.random.key(i), (fan_in, fan_out), jnp.float32) for i in range(n_samples)])
    largest = float(jnp.max(jnp.abs(draws)))
    return 0.0 if largest == 0 else math.pow(largest, 2) * float(jnp.mean(jnp.square(draws / largest)))


def _is_tabled(named: str | Initializer) -> bool:
    return isinstance(named, str) and ":" not in named
