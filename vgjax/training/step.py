"""The pure train step of one lane, what it takes and gives, its first state, and the record of an instrumented step."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from vgjax.config import Config, Hypers
from vgjax.data import batches
from vgjax.data.batches import Arrays, Batch
from vgjax.network.model import MLP, Seen, Variables, initial_variables
from vgjax.statistics.families import record_of
from vgjax.statistics.view import View
from vgjax.training import parallel
from vgjax.training.optim import make_optimizer, zeroed


class Lane(NamedTuple):
    """What differs from lane to lane of one program."""

    hypers: Hypers
    key: jax.Array
    replica: jax.Array


class State(NamedTuple):
    """What a train step changes."""

    variables: Variables
    opt_state: Any


class Outcome(NamedTuple):
    """What a train step returns besides its new state."""

    loss: jax.Array  # mean over the batch
    correct: jax.Array  # examples classified correctly; NaN where the loss is NaN
    examples: jax.Array  # in the batch
    zeroed: jax.Array  # 1 if clipping turned a whole gradient to zeros, else 0


class Plan(NamedTuple):
    """One chunk of epochs: the steps start … stop − 1, some of them instrumented.

    All fields are traced, so that every chunk runs the same program.
    """

    start: jax.Array
    stop: jax.Array
    recorded: jax.Array  # the instrumented steps [largest number in any chunk + 1], the rest filled with `stop`
    validates: jax.Array  # whether an epoch ends with a validation [largest number of epochs in any chunk]


class Shared(NamedTuple):
    """What all lanes share."""

    train: Arrays
    validation: Arrays
    plan: Plan
    depth: jax.Array | None = None  # hidden layers, in an elastic program (see `model.is_elastic`); None: the config's


class Program(NamedTuple):
    """Everything static that the compiled functions of a run depend on."""

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
    """A key for one named purpose; a new purpose changes the draws of no other one."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


def train_step(
    program: Program, lane: Lane, state: State, batch: Batch, depth: jax.Array | None = None
) -> tuple[State, Outcome, View]:
    """One pure step: gradient → chain of the optimizer → new parameters.

    Args:
      program: static.
      lane: hypers, key and replica.
      state: parameters, batch statistics, optimizer state.
      batch: this device's examples.
      depth: see `Shared`.

    Returns:
      The new state; loss and number of correct examples; and the view for statistics: XLA computes no part of it that
      nothing uses.
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
    correct = nan_where_loss_is_nan(loss, correct)
    is_zeroed = zeroed(points) if config.clip != "none" else jnp.bool_(False)
    deltas = {path[0]: delta for path, delta in flatten_dict(deltas).items()}
    view = View(gradients, points, params, seen, deltas, batch.mask, depth)
    return State(variables, opt_state), Outcome(loss, correct, count, is_zeroed.astype(jnp.float32)), view


def _zeros(model: MLP, state: State, batch: Batch) -> Any:
    """Zeros to add to every pre-activation; the gradient of the loss with respect to them is δ."""
    forward = partial(model.apply, train=False, mutable=["perturbations"])
    shapes = jax.eval_shape(forward, state.variables, batch.inputs)[1]["perturbations"]
    return jax.tree.map(lambda z: jnp.zeros(z.shape, z.dtype), shapes)


def record(program: Program, outcome: Outcome, view: View) -> dict[str, jax.Array]:
    """What an instrumented step records: loss, accuracy, and the statistics that the config asks for."""
    where = program.where
    seen, deltas = parallel.whole_batch(where, (view.seen, view.deltas), axis=-2)
    whole = view._replace(seen=seen, deltas=deltas, mask=parallel.whole_batch(where, view.mask, axis=-1))
    scalars = {"loss": outcome.loss, "accuracy": outcome.correct / outcome.examples}
    return scalars | record_of(program.config, whole)


def initial_state(program: Program, shared: Shared, lane: Lane) -> State:
    """The state at step 0: drawn parameters, the same for all replicas of a key, and a new optimizer state."""
    config = program.config
    order = order_of_epoch(program, lane, jnp.int32(0))
    rows = order[: min(config.batch_size, program.n_examples)]
    inputs = batches.scaled(shared.train, shared.train.inputs[rows])
    key = purpose_key(lane.key, "init")
    variables = initial_variables(config, program.classes, lane.hypers, key, inputs, shared.depth)
    return fresh_state(program, shared, (lane, variables))


def fresh_state(program: Program, shared: Shared, lane_and_variables: tuple[Lane, Variables]) -> State:
    """The state at step 0 with given variables, and a new optimizer state."""
    lane, variables = lane_and_variables
    tx = make_optimizer(program.config, lane.hypers, program.total_steps)
    return State(variables, tx.init(variables["params"]))


def nan_where_loss_is_nan(loss: jax.Array, accuracy: jax.Array) -> jax.Array:
    """The accuracy, or NaN where the loss is NaN: argmax would take logits of NaN for the first class."""
    return jnp.where(jnp.isnan(loss), jnp.nan, accuracy)


def order_of_epoch(program: Program, lane: Lane, epoch: jax.Array) -> jax.Array:
    """The order in which a lane sees the examples in an epoch [steps · batch_size]."""
    return batches.epoch_order(program.config, program.n_examples, purpose_key(lane.key, "shuffle"), epoch)


def lanes_of(pairs: Sequence[tuple[Hypers, int]], replicas: int) -> tuple[Lane, dict[str, np.ndarray]]:
    """One lane for each (setting, seed) and replica, as lanes [n], and their coordinates in a history."""
    rows = [(setting, seed, replica) for setting, seed in pairs for replica in range(replicas)]
    columns = {name: np.array([float(getattr(s, name)) for s, _, _ in rows]) for name in Hypers._fields}
    coordinates = {
        "seed": np.array([seed for _, seed, _ in rows]),
        "replica": np.array([replica for _, _, replica in rows]),
        **columns,
    }
    lanes = Lane(
        Hypers(*(columns[name].astype(np.float32) for name in Hypers._fields)),  # type: ignore[arg-type]
        jax.vmap(jax.random.key)(coordinates["seed"].astype(np.uint32)),
        coordinates["replica"].astype(np.int32),  # type: ignore[arg-type]
    )
    return lanes, coordinates
