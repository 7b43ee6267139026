"""Where a run left the finite numbers: a chunk is run again, step by step, until something is NaN or infinite.

The run itself looks at nothing but its losses for this, which it has anyway.
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
    """The first step of a chunk in which a pre-activation, the loss, a gradient or a new parameter is not finite.

    A loss that is not finite where all pre-activations are counts as the last layer's.

    Args:
      program: static.
      shared: data, and the plan of the chunk.
      lane_and_state: as they were before the chunk.

    Returns:
      The step, −1 if there is none; and which layers were bad in it, bool [PLACES, layers].
    """
    lane, state = lane_and_state
    plan, per_epoch = shared.plan, program.steps_per_epoch
    orders = orders_of(program, shared, lane)

    def look(step: Callable[..., Any], state: State, t: jax.Array) -> tuple[State, jax.Array]:
        state, outcome, view = step(state, t)
        return state, _bad_layers(program, outcome.loss, view, state.variables["params"])

    def until(stop: jax.Array) -> Callable[[tuple], jax.Array]:
        return lambda carry: ~jnp.any(carry[-1]) & (carry[1] < stop)

    def epoch(carry: tuple) -> tuple:
        start = carry[1]
        step = stepper(program, shared, lane, orders[(start - plan.start) // per_epoch])

        def body(carry: tuple) -> tuple:
            state, t, _ = carry
            state, bad = look(step, state, t)
            return state, t + 1, bad

        return jax.lax.while_loop(until(jnp.minimum(start + per_epoch, plan.stop)), body, carry)

    first = stepper(program, shared, lane, orders[0])
    none = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(partial(look, first), state, plan.start)[1]
    )
    _, t, bad = jax.lax.while_loop(until(plan.stop), epoch, (state, plan.start, none))
    return jnp.where(jnp.any(bad), t - 1, -1), bad


def _bad_layers(program: Program, loss: jax.Array, view: View, new_params: Any) -> jax.Array:
    z = weights.any_bad(groups(view.seen.pre_activations))
    anywhere = (parallel.total(program.where, z.astype(jnp.int32)) > 0).at[-1].max(~jnp.isfinite(loss))
    return jnp.stack([anywhere, _bad_modules(view.gradients), _bad_modules(new_params)])


def _bad_modules(params: Any) -> jax.Array:
    """Which layers' weights, biases, norms or gains are not finite, bool [layers]."""
    parts = [group(name, leaf) for name, module in params.items() for leaf in jax.tree.leaves(module)]
    rows = [max(1, layer_number(name)) - 1 for part in parts for name in part.names]  # norm_0 is layer_1's
    return jnp.zeros(max(rows) + 1, bool).at[np.array(rows)].max(weights.any_bad(parts))


def describe(step: int, bad: np.ndarray, layers: Sequence[str]) -> dict[str, Any]:
    """The layer where it began, and in which direction the signal was going.

    On its way forward the signal is lost in the lowest bad layer, backward in the highest.

    Args:
      step, bad: as `first_bad` gives them, of one lane.
      layers: names of all layers.

    Returns:
      {"first_bad_step", "first_bad_layer", "first_bad_in": "forward", "backward" or "update"}.
    """
    if step < 0:
        return NOWHERE
    where = next(i for i, row in enumerate(bad) if row.any())
    rows = np.flatnonzero(bad[where])
    layer = rows[-1] if PLACES[where] == "backward" else rows[0]
    return {"first_bad_step": int(step), "first_bad_layer": layers[layer], "first_bad_in": PLACES[where]}
