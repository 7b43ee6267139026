"""What an instrumented step shows: everything from which a statistic can be computed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax


class View(NamedTuple):
    """Everything that a family of statistics can read; `jit` removes the computation of what no family reads."""

    gradients: Any  # of the loss, before the optimizer
    points: Points
    params: Any  # before the step
    # A watched optimizer does not know these:
    seen: Any = None  # what the model's layers saw, `vgjax.network.model.Seen`
    deltas: Any = None  # ∂loss/∂z of each layer, {name: [B, units]}
    mask: jax.Array | None = None  # which examples count [B], or None for all
    depth: jax.Array | None = None  # number of hidden layers, if traced; layers between these and the last do not exist


class Points(NamedTuple):
    """A gradient at three points of the optimizer's chain."""

    raw: optax.Updates  # before clipping
    clipped: optax.Updates  # after clipping
    updates: optax.Updates  # what is added to the parameters
