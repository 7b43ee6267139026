"""Where a run diverged: the chunk runs again, step by step, until a number is NaN or infinite.

The run itself checks only its losses, and its parameters at the end of a chunk, which costs it nothing at a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.network.layer_names import group, groups, layer_number
from vgjax.statistics import weights
from vgjax.statistics.view import View
from vgjax.training import parallel
from vgjax.training.chunk import orders_of, stepper
from vgjax.training.step import Lane, Program, Shared, State

NOWHERE: dict[str, Any] = {"first_bad_step": -1, "first_bad_layer": "", "first_bad_in": ""}
PLACES = ("forward", "backward", "update")


def first_bad(program: Program, shared: Shared, lane_and_state: tuple[Lane, State]) -> tuple[jax.Array, jax.Array]:
    """Find the first step of a chunk in which a pre-activation, the loss, a gradient or a new parameter is not finite.

    If the loss is not finite although all pre-activations are, the last layer counts as bad.

    Args:
      program: static.
      shared: data, and the plan of the chunk.
      lane_and_state: as they were before the chunk.

    Returns:
      The step, or −1; and the layers with a number that is not finite in it, bool [PLACES, layers].
    """
    lane, state = lane_and_state
    plan, per_epoch = shared.plan, program.steps_per_epoch
    orders = orders_of(program, shared, lane)

    def checked_step(step: Callable[..., Any], state: State, t: jax.Array) -> tuple[State, jax.Array]:
        state, outcome, view = step(state, t)
        return state, _bad_layers(program, outcome.loss, view, state.variables["params"])

    def until(stop: jax.Array) -> Callable[[tuple], jax.Array]:
        return lambda carry: ~jnp.any(carry[-1]) & (carry[1] < stop)

    def epoch(carry: tuple) -> tuple:
        start = carry[1]
        step = stepper(program, shared, lane, orders[(start - plan.start) // per_epoch])

        def body(carry: tuple) -> tuple:
            state, t, _ = carry
            state, bad = checked_step(step, state, t)
            return state, t + 1, bad

        return jax.lax.while_loop(until(jnp.minimum(start + per_epoch, plan.stop)), body, carry)

    first = stepper(program, shared, lane, orders[0])
    none = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(partial(checked_step, first), state, plan.start)[1]
    )
    _, t, bad = jax.lax.while_loop(until(plan.stop), epoch, (state, plan.start, none))
    return jnp.where(jnp.any(bad), t - 1, -1), bad


def _bad_layers(program: Program, loss: jax.Array, view: View, new_params: Any) -> jax.Array:
    z = weights.any_bad(groups(view.seen.pre_activations))
    anywhere = (parallel.total(program.where, z.astype(jnp.int32)) > 0).at[-1].max(~jnp.isfinite(loss))
    return jnp.stack([anywhere, _bad_modules(view.gradients), _bad_modules(new_params)])


def _bad_modules(params: Any) -> jax.Array:
    """The layers with a weight, bias, norm parameter or gain that is not finite, bool [layers]."""
    parts = [group(name, leaf) for name, module in params.items() for leaf in jax.tree.leaves(module)]
    rows = [max(1, layer_number(name)) - 1 for part in parts for name in part.names]  # norm_0 belongs to layer_1
    return jnp.zeros(max(rows) + 1, bool).at[np.array(rows)].max(weights.any_bad(parts))


def describe(step: int, bad: np.ndarray, layers: Sequence[str]) -> dict[str, Any]:
    """Say in which layer a lane diverged first, and where in the step.

    The forward signal is lost first in the lowest bad layer, the backward signal in the highest.

    Args:
      step, bad: the results of `first_bad` for one lane.
      layers: the names of all layers.

    Returns:
      {"first_bad_step", "first_bad_layer", "first_bad_in": "forward", "backward" or "update"}.
    """
    if step < 0:
        return NOWHERE
    where = next(i for i, row in enumerate(bad) if row.any())
    rows = np.flatnonzero(bad[where])
    layer = rows[-1] if PLACES[where] == "backward" else rows[0]
    return {"first_bad_step": int(step), "first_bad_layer": layers[layer], "first_bad_in": PLACES[where]}
