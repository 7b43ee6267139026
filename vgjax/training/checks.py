"""Checks of all that a config names, on small shapes, before a run compiles or writes anything."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vgjax.activations import activation
from vgjax.config import LARGEST_FLOAT, Config, Hypers
from vgjax.initializers import initializer, weight_variance
from vgjax.names import attempt, resolve, text_of
from vgjax.network.layer_names import layer_names
from vgjax.statistics.cadence import CADENCES, steps_of
from vgjax.statistics.families import chosen, kept
from vgjax.training.optim import OPTIMIZERS, SCHEDULES, make_optimizer
from vgjax.training.parallel import in_float32

STEPS = 10


@in_float32
def check_names(config: Config) -> None:
    """Look up every name of a config except the data set's, and trace its function on small shapes.

    Raises:
      ValueError: an unknown name, or a user's function that raises or returns other shapes or dtypes; in one line.
    """
    if not isinstance(config, Config):
        raise ValueError(f"config {reprlib.repr(config)} is not allowed; allowed: vgjax.Config")
    weights, bias = jax.ShapeDtypeStruct((3, 2), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    phi = activation(config.activation)
    _try("activation", config.activation, lambda z: jax.vjp(phi, z)[0], weights, weights)  # which needs a gradient
    for named in dict.fromkeys([config.initializer, config.output_initializer or config.initializer]):
        init = initializer(named)
        _try("initializer", named, lambda key, init=init: init(key, weights.shape, weights.dtype), key, weights)
        if isinstance(named, str) and ":" not in named:  # a row of the table: its variance takes the same arguments
            attempt("initializer", named, partial(_check_variance, named, *weights.shape))
    resolve("cadence", CADENCES, config.cadence)
    attempt("cadence", config.cadence, lambda: steps_of(config.cadence, STEPS, 2 * STEPS))
    chosen(config.record)
    kept(config, layer_names(len(config.hidden) + 1))
    schedule = resolve("schedule", SCHEDULES, config.schedule)
    with jax.numpy_dtype_promotion("standard"):
        count, factor = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
        _try("schedule", config.schedule, lambda count: 1.0 * schedule(STEPS)(count), count, factor)
    params = {"kernel": weights, "bias": bias}
    resolve("optimizer", OPTIMIZERS, config.optimizer)
    tx = attempt("optimizer", config.optimizer, lambda: make_optimizer(config, Hypers(), STEPS))
    _try("optimizer", config.optimizer, lambda p: tx.update(p, tx.init(p), p)[0], params, params)


def _try(kind: str, named: Any, function: Callable[..., Any], given: Any, wanted: Any) -> None:
    """Refuse a function of `given` that raises, or returns other shapes or dtypes than `wanted`."""
    got = attempt(kind, named, lambda: jax.eval_shape(function, given))
    if _shapes(got) != _shapes(wanted):
        raise ValueError(f"{kind} {text_of(named)!r} gives {_shapes(got)}; allowed: {_shapes(wanted)}")


def _check_variance(named: str, fan_in: int, fan_out: int) -> None:
    variance = weight_variance(named, fan_in, fan_out)
    if not 0 <= variance <= LARGEST_FLOAT**2:
        raise ValueError(f"its weights have a variance of {variance}; allowed: 0 or more, to {LARGEST_FLOAT}²")


def _shapes(tree: Any) -> Any:
    """A tree of arrays with text in place of each array: float32[3,2]."""
    leaves, structure = jax.tree.flatten(tree)
    shapes = [f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in leaves]
    return jax.tree.unflatten(structure, shapes)
