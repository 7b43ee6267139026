"""What an instrumented step shows: all that a statistic can be computed from."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax


class View(NamedTuple):
    """All that an instrumented step lets one see; what no family looks at costs nothing, since jit leaves it out."""

    gradients: Any  # of the loss, before the optimizer
    points: Points
    params: Any  # before the step
    # What a train step of one's own may not have to show:
    seen: Any = None  # of the model, `Seen`
    deltas: Any = None  # ∂loss/∂z a layer, {name: [B, units]}
    mask: jax.Array | None = None  # which examples count [B], or None for all
    depth: jax.Array | None = None  # hidden layers, where that is traced: the layers between them and the last are none


class Points(NamedTuple):
    """A gradient on its way through the chain."""

    raw: optax.Updates  # as it comes to the clipping
    clipped: optax.Updates  # as it leaves it
    updates: optax.Updates  # what is added to the parameters
