"""A chunk of epochs as one compiled function: bare and instrumented train steps, and evaluations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vgjax.data import batches
from vgjax.network.model import MLP
from vgjax.statistics.view import View
from vgjax.training import parallel
from vgjax.training.step import Lane, Outcome, Plan, Program, Shared, State, _order, _where_told, record, train_step


class Meter(NamedTuple):
    """Sums over the steps of an epoch; of the loss the mean, whose sum could overflow."""

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array
    zeroed: jax.Array
    steps: jax.Array


EVALUATION = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "clipped_to_zero")


def stepper(program: Program, shared: Shared, lane: Lane, order: jax.Array) -> Callable[[State, jax.Array], Any]:
    """The train step as a function of the state and the step t, within the epoch of that order."""
    per_epoch = program.steps_per_epoch

    @partial(jax.jit, inline=True)  # traced once for all its uses
    def step(state: State, t: jax.Array) -> tuple[State, Outcome, View]:
        device = parallel.device_index(program.where)
        batch = batches.batch_at(
            program.config, shared.train, order, t % per_epoch, lane.replica, device, program.where.batch_devices
        )
        return train_step(program, lane, state, batch, shared.depth)

    return step


def orders_of(program: Program, shared: Shared, lane: Lane) -> jax.Array:
    """The order of the examples in every epoch that the chunk may have [epochs, steps · batch_size], drawn at once."""
    epochs = shared.plan.start // program.steps_per_epoch + jnp.arange(shared.plan.validates.shape[0])
    return jax.vmap(partial(_order, program, lane))(epochs)


def run_chunk(program: Program, shared: Shared, lane_and_state: tuple[Lane, State]) -> tuple[State, dict, dict]:
    """The epochs of one chunk.

    Returns:
      The new state; the records [most that a chunk can have, …]; the evaluations [most epochs that a chunk can have]:
      means over the epoch's steps, and over the validation examples, NaN where the plan has none; of all these the
      plan's first ones count; and whether losses and parameters are finite.
    """
    lane, state = lane_and_state
    plan, per_epoch = shared.plan, program.steps_per_epoch
    n_epochs = (plan.stop - plan.start + per_epoch - 1) // per_epoch
    orders = orders_of(program, shared, lane)

    def epoch(e: jax.Array, carry: tuple) -> tuple:
        state, records, r, evaluations = carry
        start = plan.start + e * per_epoch
        stop = jnp.minimum(start + per_epoch, plan.stop)
        step = stepper(program, shared, lane, orders[e])
        state, meter, records, r = _run_steps(program, plan, step, (start, stop), (state, records, r))
        one = _evaluation(program, shared, lane, state, meter, plan.validates[e])
        evaluations = {name: values.at[e].set(one[name]) for name, values in evaluations.items()}
        return state, records, r, evaluations

    def first_record() -> dict[str, jax.Array]:
        return record(program, *stepper(program, shared, lane, orders[0])(state, plan.start)[1:])

    most = plan.recorded.shape[0] - 1
    records = jax.tree.map(lambda s: jnp.zeros((most, *s.shape), s.dtype), jax.eval_shape(first_record))
    nowhere = jnp.full(plan.validates.shape, jnp.nan, jnp.float32)
    carry = (state, records, jnp.int32(0), dict.fromkeys(EVALUATION, nowhere))
    state, records, _, evaluations = jax.lax.fori_loop(0, n_epochs, epoch, carry)
    params = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.variables["params"])])
    is_counted = jnp.arange(plan.validates.shape[0]) < n_epochs
    losses = jnp.isfinite(evaluations["train_loss"]) | ~is_counted
    return state, records, evaluations | {"finite": jnp.all(params) & jnp.all(losses)}


def _run_steps(
    program: Program, plan: Plan, step: Callable[..., Any], steps: tuple[jax.Array, jax.Array], carry: tuple
) -> tuple[State, Meter, dict[str, jax.Array], jax.Array]:
    """Steps of one epoch, from the first of `steps` up to the second: bare ones, and those that the plan records."""
    start, stop = steps

    def bare(t: jax.Array, carry: tuple) -> tuple:
        state, meter = carry
        state, outcome, _view = step(state, t)
        return state, _add(meter, outcome)

    def instrumented(r: jax.Array, carry: tuple) -> tuple:
        state, meter, records = carry
        state, outcome, view = step(state, plan.recorded[r])
        one = record(program, outcome, view)
        state = _after(one, view.params, state)
        records = jax.tree.map(lambda all_, one: all_.at[r].set(one, mode="promise_in_bounds"), records, one)
        return state, _add(meter, outcome), records

    def gap_then_record(carry: tuple) -> tuple:
        state, meter, records, r, t = carry
        here = jnp.minimum(plan.recorded[r], stop)
        state, meter = jax.lax.fori_loop(t, here, bare, (state, meter))
        after = jnp.where(here < stop, r + 1, r)
        # Once, or after the last record not at all: a loop changes them in place, where `cond` would copy them all.
        state, meter, records = jax.lax.fori_loop(r, after, instrumented, (state, meter, records))
        return state, meter, records, after, here + 1

    state, records, r = carry
    meter = Meter(*[jnp.float32(0)] * len(Meter._fields))
    carry = (state, meter, records, r, start)
    state, meter, records, r, _ = jax.lax.while_loop(lambda carry: carry[-1] < stop, gap_then_record, carry)
    return state, meter, records, r


def _after(record: dict[str, jax.Array], before: Any, state: State) -> State:
    """The same state, bit by bit, whose parameters XLA cannot know before the record.

    Nothing looks at the parameters `before` then any more, so that they are changed in place; XLA would copy them all.
    """
    firsts = [values.reshape(len(values), -1)[:, 0] if values.ndim else values[None] for values in record.values()]
    number = jnp.sum(jnp.concatenate([jax.lax.bitcast_convert_type(first, jnp.uint32) for first in firsts]))
    is_odd = number * (number + 1) & 1 == 1  # never, of two neighbours
    params = jax.tree.map(lambda old, new: jnp.where(is_odd, old, new), before, state.variables["params"])
    return State({**state.variables, "params": params}, state.opt_state)


def _evaluation(
    program: Program, shared: Shared, lane: Lane, state: State, meter: Meter, validates: jax.Array
) -> dict[str, jax.Array]:
    """What is said at the end of an epoch: `EVALUATION`."""
    validation = partial(evaluate, program, shared, lane)
    unseen = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), jax.eval_shape(validation, state))
    return {
        "train_loss": meter.loss,
        "train_accuracy": meter.correct / meter.examples,
        **jax.lax.cond(validates, validation, lambda state: unseen, state),
        "clipped_to_zero": meter.zeroed / meter.steps,
    }


def evaluate(program: Program, shared: Shared, lane: Lane, state: State) -> dict[str, jax.Array]:
    """Loss and accuracy over the validation examples (a replica: over its own part of every batch)."""
    config, validation = program.config, shared.validation
    rows = jnp.arange(validation.labels.shape[0])
    if config.replicas > 1:
        parts = rows.reshape(-1, config.replicas, config.batch_size // config.replicas)
        rows = jnp.take(parts, lane.replica, axis=1).ravel()
    inputs = batches.scaled(validation, validation.inputs[rows])
    logits, _ = MLP(config, program.classes).apply(state.variables, inputs, train=False, depth=shared.depth)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, validation.labels[rows])
    right = jnp.argmax(logits, axis=-1) == validation.labels[rows]
    loss, accuracy = jnp.mean(losses), jnp.mean(right, dtype=jnp.float32)
    return {"validation_loss": loss, "validation_accuracy": _where_told(loss, accuracy)}


def _add(meter: Meter, outcome: Outcome) -> Meter:
    examples = meter.examples + outcome.examples
    share = outcome.examples / examples
    loss = meter.loss * (1 - share) + outcome.loss * share
    return Meter(loss, meter.correct + outcome.correct, examples, meter.zeroed + outcome.zeroed, meter.steps + 1)
