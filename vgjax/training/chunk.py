"""A chunk of epochs as one function to compile: bare train steps, instrumented train steps, and evaluations."""

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
from vgjax.training.step import (
    Lane,
    Outcome,
    Plan,
    Program,
    Shared,
    State,
    nan_where_loss_is_nan,
    order_of_epoch,
    record,
    train_step,
)


class Meter(NamedTuple):
    """Sums over the steps of an epoch so far, but the mean of the loss, since its sum could overflow."""

    loss: jax.Array  # mean over the examples
    correct: jax.Array
    examples: jax.Array
    zeroed: jax.Array
    steps: jax.Array


EVALUATION = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "clipped_to_zero")


def stepper(program: Program, shared: Shared, lane: Lane, order: jax.Array) -> Callable[[State, jax.Array], Any]:
    """The train step as a function of the state and the step t, for an epoch with this order of examples."""
    per_epoch = program.steps_per_epoch

    @partial(jax.jit, inline=True)  # so that it is traced once, though it is used several times
    def step(state: State, t: jax.Array) -> tuple[State, Outcome, View]:
        device = parallel.device_index(program.where)
        batch = batches.batch_at(
            program.config, shared.train, order, t % per_epoch, lane.replica, device, program.where.batch_devices
        )
        return train_step(program, lane, state, batch, shared.depth)

    return step


def orders_of(program: Program, shared: Shared, lane: Lane) -> jax.Array:
    """The order of the examples in each epoch that the chunk may have [epochs, steps · batch_size], drawn together."""
    epochs = shared.plan.start // program.steps_per_epoch + jnp.arange(shared.plan.validates.shape[0])
    return jax.vmap(partial(order_of_epoch, program, lane))(epochs)


def run_chunk(program: Program, shared: Shared, lane_and_state: tuple[Lane, State]) -> tuple[State, dict, dict]:
    """Run the epochs of one chunk.

    Returns:
      The new state; the records [largest number in any chunk, …]; and the evaluations [largest number of epochs in any
      chunk]: means over the steps of an epoch, means over the validation examples (NaN where the plan has no
      validation), and "finite": whether all losses and parameters are. Only as many records and evaluations count as
      the plan has.
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

    n_records = plan.recorded.shape[0] - 1
    records = jax.tree.map(lambda s: jnp.zeros((n_records, *s.shape), s.dtype), jax.eval_shape(first_record))
    not_evaluated = jnp.full(plan.validates.shape, jnp.nan, jnp.float32)
    carry = (state, records, jnp.int32(0), dict.fromkeys(EVALUATION, not_evaluated))
    state, records, _, evaluations = jax.lax.fori_loop(0, n_epochs, epoch, carry)
    params = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.variables["params"])])
    is_counted = jnp.arange(plan.validates.shape[0]) < n_epochs
    losses = jnp.isfinite(evaluations["train_loss"]) | ~is_counted
    return state, records, evaluations | {"finite": jnp.all(params) & jnp.all(losses)}


def _run_steps(
    program: Program, plan: Plan, step: Callable[..., Any], steps: tuple[jax.Array, jax.Array], carry: tuple
) -> tuple[State, Meter, dict[str, jax.Array], jax.Array]:
    """Run the steps of one epoch, bare or instrumented as the plan says.

    Args:
      program, plan, step: as `run_chunk` has them.
      steps: the epoch's first step, and the step after its last.
      carry: the state, the records, and the number of records written so far.
    """
    start, stop = steps

    def bare(t: jax.Array, carry: tuple) -> tuple:
        state, meter = carry
        state, outcome, _view = step(state, t)
        return state, _add(meter, outcome)

    def instrumented(r: jax.Array, carry: tuple) -> tuple:
        state, meter, records = carry
        state, outcome, view = step(state, plan.recorded[r])
        one = record(program, outcome, view)
        state = _depending_on(one, view.params, state)
        records = jax.tree.map(lambda all_, one: all_.at[r].set(one, mode="promise_in_bounds"), records, one)
        return state, _add(meter, outcome), records

    def gap_then_record(carry: tuple) -> tuple:
        state, meter, records, r, t = carry
        next_recorded = jnp.minimum(plan.recorded[r], stop)
        state, meter = jax.lax.fori_loop(t, next_recorded, bare, (state, meter))
        next_r = jnp.where(next_recorded < stop, r + 1, r)
        # This loop runs once, or never after the last record. It writes the records in place; `cond` would copy them
        # all (everything recorded at every 10th step cost 1.18 times the bare run with `cond`, 1.15 with the loop).
        state, meter, records = jax.lax.fori_loop(r, next_r, instrumented, (state, meter, records))
        return state, meter, records, next_r, next_recorded + 1

    state, records, r = carry
    meter = Meter(*[jnp.float32(0)] * len(Meter._fields))
    carry = (state, meter, records, r, start)
    state, meter, records, r, _ = jax.lax.while_loop(lambda carry: carry[-1] < stop, gap_then_record, carry)
    return state, meter, records, r


def _depending_on(record: dict[str, jax.Array], before: Any, state: State) -> State:
    """Make the new parameters depend on the record, so that XLA can update them in place; their values stay.

    The record needs the parameters `before` the step. If XLA may compute the new ones first, it copies the old ones.

    On a CPU this saves one of two copies of most weight matrices in the compiled loop; norms at every step of a
    784-512-256-128-10 network take 1.06 to 1.17 times as long without it. `jax.lax.optimization_barrier` on the record
    and the parameters does not help: XLA removes it before it places the copies. This can go when XLA keeps that order.
    """
    firsts = [values.reshape(len(values), -1)[:, 0] if values.ndim else values[None] for values in record.values()]
    number = jnp.sum(jnp.concatenate([jax.lax.bitcast_convert_type(first, jnp.uint32) for first in firsts]))
    is_odd = number * (number + 1) & 1 == 1  # n(n+1) is always even; XLA cannot see that
    params = jax.tree.map(lambda old, new: jnp.where(is_odd, old, new), before, state.variables["params"])
    return State({**state.variables, "params": params}, state.opt_state)


def _evaluation(
    program: Program, shared: Shared, lane: Lane, state: State, meter: Meter, validates: jax.Array
) -> dict[str, jax.Array]:
    """The numbers of `EVALUATION` at the end of an epoch."""
    validation = partial(evaluate, program, shared, lane)
    not_validated = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), jax.eval_shape(validation, state))
    return {
        "train_loss": meter.loss,
        "train_accuracy": meter.correct / meter.examples,
        **jax.lax.cond(validates, validation, lambda state: not_validated, state),
        "clipped_to_zero": meter.zeroed / meter.steps,
    }


def evaluate(program: Program, shared: Shared, lane: Lane, state: State) -> dict[str, jax.Array]:
    """Loss and accuracy over the validation examples; a replica takes its own part of every batch."""
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
    return {"validation_loss": loss, "validation_accuracy": nan_where_loss_is_nan(loss, accuracy)}


def _add(meter: Meter, outcome: Outcome) -> Meter:
    examples = meter.examples + outcome.examples
    share = outcome.examples / examples
    loss = meter.loss * (1 - share) + outcome.loss * share
    return Meter(loss, meter.correct + outcome.correct, examples, meter.zeroed + outcome.zeroed, meter.steps + 1)
