"""The engine: a pure train step; chunks of steps, some of them instrumented; lanes run together; one history."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

from vgjax import batches, parallel
from vgjax.batches import Arrays, Batch
from vgjax.config import Config, Hypers
from vgjax.families import View, record_of
from vgjax.model import MLP, Seen, Variables, initial_variables
from vgjax.optim import make_optimizer, zeroed


class Lane(NamedTuple):
    """What makes one run of the program differ from the next."""

    hypers: Hypers
    key: jax.Array
    replica: jax.Array


class State(NamedTuple):
    """What a train step changes."""

    variables: Variables
    opt_state: Any


class Outcome(NamedTuple):
    """What a train step tells besides its new state."""

    loss: jax.Array  # mean over the batch
    correct: jax.Array  # examples classified right; NaN where the loss is
    examples: jax.Array  # in the batch
    zeroed: jax.Array  # 1 where clipping made zeros of a gradient, else 0


class Meter(NamedTuple):
    """Sums over the steps of an epoch; of the loss the mean, whose sum could overflow."""

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array
    zeroed: jax.Array
    steps: jax.Array


EVALUATION = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "clipped_to_zero")


class Plan(NamedTuple):
    """One chunk of epochs: the steps start … stop − 1, of which some are instrumented.

    All are traced, so that one program serves every chunk.
    """

    start: jax.Array
    stop: jax.Array
    recorded: jax.Array  # the instrumented steps [most that a chunk can have + 1], filled up with `stop`
    validates: jax.Array  # whether an epoch ends with a validation [most epochs that a chunk can have]


class Shared(NamedTuple):
    """What all lanes see."""

    train: Arrays
    validation: Arrays
    plan: Plan
    depth: jax.Array | None = None  # hidden layers of an elastic program (see `model.is_elastic`); None: the config's


class Program(NamedTuple):
    """Everything that the compiled functions of a run depend on."""

    config: Config
    classes: int
    n_examples: int
    where: parallel.Layout

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch."""
        return batches.steps_per_epoch(self.config, self.n_examples)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.steps or self.config.epochs * self.steps_per_epoch


def purpose_key(key: jax.Array, purpose: str) -> jax.Array:
    """A key for one purpose, by its name, so that a new purpose changes no other draw."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


def train_step(
    program: Program, lane: Lane, state: State, batch: Batch, depth: jax.Array | None = None
) -> tuple[State, Outcome, View]:
    """One pure step: gradient → chain of the optimizer → parameters.

    Args:
      program: static.
      lane: hypers.
      state: parameters, batch statistics, optimizer state.
      batch: this device's examples.
      depth: as `Shared` has it.

    Returns:
      The new state; loss and accuracy; and what may be looked at, which costs nothing where it is not.
    """
    config, where = program.config, program.where
    model = MLP(config, program.classes, where.axis_name)
    params = state.variables["params"]
    rest = {name: value for name, value in state.variables.items() if name != "params"}
    here = jnp.float32(batch.labels.size) if batch.mask is None else jnp.sum(batch.mask, dtype=jnp.float32)
    count = parallel.total(where, here)

    def loss_of(params: Any, perturbations: Any) -> tuple[jax.Array, tuple[jax.Array, Seen, Any]]:
        variables = {"params": params, **rest, "perturbations": perturbations}
        (logits, seen), changed = model.apply(
            variables, batch.inputs, train=True, mask=batch.mask, depth=depth, mutable=list(rest)
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        if batch.mask is not None:
            losses = jnp.where(batch.mask, losses, 0.0)
        loss = jnp.sum(losses)
        return (loss if config.reduction == "sum" else loss / count), (logits, seen, changed)

    differentiate = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (loss, (logits, seen, changed)), (gradients, deltas) = differentiate(params, _zeros(model, state, batch))
    right = jnp.argmax(logits, axis=-1) == batch.labels
    if batch.mask is not None:
        right &= batch.mask
    correct = jnp.sum(right, dtype=jnp.float32)
    gradients, loss, correct = parallel.total(where, (gradients, loss, correct))
    tx = make_optimizer(config, lane.hypers, program.total_steps)
    points, opt_state = tx.points(gradients, state.opt_state, params)
    variables = {"params": optax.apply_updates(params, points.updates), **changed}
    loss = loss / count if config.reduction == "sum" else loss
    correct = _where_told(loss, correct)
    is_zeroed = zeroed(points) if config.clip != "none" else jnp.bool_(False)
    deltas = {path[0]: delta for path, delta in flatten_dict(deltas).items()}
    view = View(gradients, points, params, seen, deltas, batch.mask, depth)
    return State(variables, opt_state), Outcome(loss, correct, count, is_zeroed.astype(jnp.float32)), view


def _zeros(model: MLP, state: State, batch: Batch) -> Any:
    """What perturbs every pre-activation: the loss's gradient with respect to it is δ."""
    forward = partial(model.apply, train=False, mutable=["perturbations"])
    shapes = jax.eval_shape(forward, state.variables, batch.inputs)[1]["perturbations"]
    return jax.tree.map(lambda z: jnp.zeros(z.shape, z.dtype), shapes)


def record(program: Program, outcome: Outcome, view: View) -> dict[str, jax.Array]:
    """What an instrumented step leaves behind: loss, accuracy, and the statistics that the config asks for."""
    where = program.where
    seen, deltas = parallel.whole_batch(where, (view.seen, view.deltas), axis=-2)
    whole = view._replace(seen=seen, deltas=deltas, mask=parallel.whole_batch(where, view.mask, axis=-1))
    scalars = {"loss": outcome.loss, "accuracy": outcome.correct / outcome.examples}
    return scalars | record_of(program.config, whole)


def initial_state(program: Program, shared: Shared, lane: Lane) -> State:
    """Parameters (the same for all replicas of a key) and the optimizer's state at step 0."""
    config = program.config
    order = _order(program, lane, jnp.int32(0))
    rows = order[: min(config.batch_size, program.n_examples)]
    inputs = batches.scaled(shared.train, shared.train.inputs[rows])
    key = purpose_key(lane.key, "init")
    variables = initial_variables(config, program.classes, lane.hypers, key, inputs, shared.depth)
    return fresh_state(program, shared, (lane, variables))


def fresh_state(program: Program, shared: Shared, lane_and_variables: tuple[Lane, Variables]) -> State:
    """Given parameters, and an optimizer that has not moved yet."""
    lane, variables = lane_and_variables
    tx = make_optimizer(program.config, lane.hypers, program.total_steps)
    return State(variables, tx.init(variables["params"]))


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


def _where_told(loss: jax.Array, accuracy: jax.Array) -> jax.Array:
    """The accuracy; NaN where the loss is, since argmax takes NaN for the first class."""
    return jnp.where(jnp.isnan(loss), jnp.nan, accuracy)


def _add(meter: Meter, outcome: Outcome) -> Meter:
    examples = meter.examples + outcome.examples
    share = outcome.examples / examples
    loss = meter.loss * (1 - share) + outcome.loss * share
    return Meter(loss, meter.correct + outcome.correct, examples, meter.zeroed + outcome.zeroed, meter.steps + 1)


def _order(program: Program, lane: Lane, epoch: jax.Array) -> jax.Array:
    return batches.epoch_order(program.config, program.n_examples, purpose_key(lane.key, "shuffle"), epoch)
