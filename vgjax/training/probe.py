"""Measurements of random networks at step 0 on any inputs: signals, δ, gradients and Jacobians, for many seeds.

A seed gives the same network that a run with this seed starts from, and `Network.step` is the train step of a run. One
compiled program makes and measures all networks and keeps none of them, so that many deep ones fit in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from vgjax.config import Config, Hypers
from vgjax.data.batches import Batch
from vgjax.network.layer_names import groups, layer_name
from vgjax.network.model import MLP, Seen, Variables, initial_variables
from vgjax.statistics.view import View
from vgjax.training import parallel
from vgjax.training.step import Lane, Program, fresh_state, lanes_of, purpose_key, train_step

ONE_DEVICE = parallel.Layout(1, "lanes")


@dataclass(frozen=True)
class Network:
    """One network and a batch for it, inside the compiled program; a measurement is a function of this."""

    program: Program
    lane: Lane
    variables: Variables
    inputs: jax.Array  # [B, features]
    labels: jax.Array  # [B]

    def seen(self, inputs: jax.Array) -> Seen:
        """The inputs, pre-activations and activations of every layer for a batch [B, features].

        Batch norm uses the statistics of this batch.
        """
        model = MLP(self.program.config, self.program.classes)
        (_, seen), _ = model.apply(self.variables, inputs, train=True, mutable=["batch_stats"])
        return seen

    def last_hidden(self, inputs: jax.Array) -> jax.Array:
        """The output of the last hidden layer [B, width], as a function to differentiate."""
        return self.seen(inputs).inputs[layer_name(len(self.program.config.hidden) + 1)]

    def step(self) -> View:
        """The view of a run's first train step on this batch: gradients, δ, activations."""
        unused: Any = None
        state = fresh_state(self.program, unused, (self.lane, self.variables))
        return train_step(self.program, self.lane, state, Batch(self.inputs, self.labels, None))[2]


Measurement = Callable[[Network], Any]


def probe(
    measure: Measurement,
    config: Config,
    hypers: Hypers | Sequence[Hypers],
    seeds: int | Sequence[int],
    inputs: ArrayLike,
    labels: ArrayLike | None = None,
    classes: int = 10,
    float64: bool = False,
) -> Any:
    """Compute `measure(network)` for every setting and seed.

    Args:
      measure: a pure function that returns a pytree of arrays. Define it at a module's top level, so that its program
        is compiled once.
      config: the network; its fields about training and recording do not matter.
      hypers: σ_w and σ_b, of one setting or several.
      seeds: how many (0, 1, …) or which.
      inputs: as the network sees them, [B, features]; the same for all networks.
      labels: their classes, [B]; None: all 0. Only `Network.step` uses them.
      classes: number of logits.
      float64: compute in float64, with the same float32 weights; `Network.step` cannot.

    Returns:
      The pytree of `measure`, as NumPy arrays [settings, seeds, …].

    Example:
      >>> def length(network):
      ...     return per_layer(lambda z: jnp.mean(z**2), network.seen(network.inputs).pre_activations)
      >>> probe(length, Config(hidden=(8,) * 3), Hypers(), 2, np.ones((1, 5))).shape
      (1, 2, 4)
    """
    settings = [hypers] if isinstance(hypers, Hypers) else list(hypers)
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    x = np.asarray(inputs, np.float64 if float64 else np.float32)
    y = np.zeros(len(x), np.int32) if labels is None else np.asarray(labels, np.int32)
    config = replace(config, batch_size=len(x), steps=1)
    lanes, _ = lanes_of(list(itertools.product(settings, seeds)), 1)
    where = parallel.layout("auto", len(settings) * len(seeds), (1,))
    with jax.enable_x64(float64):
        shared, placed = parallel.place(where, (x, y), lanes)
        found = parallel.gather(where, _program(measure, config, classes, where)(shared, placed))
    return jax.tree.map(lambda value: value.reshape(len(settings), len(seeds), *value.shape[1:]), found)


@lru_cache(maxsize=64)
def _program(measure: Measurement, config: Config, classes: int, where: parallel.Layout) -> Callable[..., Any]:
    program = Program(config, classes, config.batch_size, ONE_DEVICE)

    def one_network(shared: tuple[jax.Array, jax.Array], lane: Lane) -> Any:
        x, y = shared
        key = purpose_key(lane.key, "init")
        drawn = initial_variables(config, classes, lane.hypers, key, x.astype(jnp.float32))
        variables = jax.tree.map(lambda leaf: leaf.astype(x.dtype), drawn)
        return measure(Network(program, lane, variables, x, y))

    return parallel.program(where, one_network)


def per_layer(function: Callable[..., jax.Array], *arrays: Mapping[str, jax.Array]) -> jax.Array:
    """Apply `function` to the arrays [B, width] of each layer; the results as [layers, …], in the layers' order.

    Args:
      function: a pure function whose result has the same shape for all layers.
      arrays: by layer, as `Seen` has them; equal layers may be stacked.
    """
    rows = [
        jax.vmap(function)(*(one.values for one in layer))
        if layer[0].is_stack
        else function(*(one.values for one in layer))[None]
        for layer in zip(*map(groups, arrays), strict=True)
    ]
    return jnp.concatenate(rows)
