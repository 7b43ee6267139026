"""Random networks at step 0, looked at on inputs of one's choice: signals, δ, gradients and Jacobians, seed by seed.

The network of a seed is the one that a run of this seed starts from, and `Network.step` is the engine's own train step.
All networks go through one compiled program and none is kept, so that many deep ones fit in memory.
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
    """One network and a batch for it, inside the compiled program: what a look may look at."""

    program: Program
    lane: Lane
    variables: Variables
    inputs: jax.Array  # [B, features]
    labels: jax.Array  # [B]

    def seen(self, inputs: jax.Array) -> Seen:
        """What every layer sees of a batch [B, features], batch norm by the statistics of this batch."""
        model = MLP(self.program.config, self.program.classes)
        (_, seen), _ = model.apply(self.variables, inputs, train=True, mutable=["batch_stats"])
        return seen

    def last_hidden(self, inputs: jax.Array) -> jax.Array:
        """What the last hidden layer hands on, [B, width]: to be differentiated."""
        return self.seen(inputs).inputs[layer_name(len(self.program.config.hidden) + 1)]

    def step(self) -> View:
        """What the engine's first train step lets one see of the batch: gradients, δ, activations."""
        nothing: Any = None
        state = fresh_state(self.program, nothing, (self.lane, self.variables))
        return train_step(self.program, self.lane, state, Batch(self.inputs, self.labels, None))[2]


Look = Callable[[Network], Any]


def probe(
    look: Look,
    config: Config,
    hypers: Hypers | Sequence[Hypers],
    seeds: int | Sequence[int],
    inputs: ArrayLike,
    labels: ArrayLike | None = None,
    classes: int = 10,
    float64: bool = False,
) -> Any:
    """`look(network)` for every setting and seed.

    Args:
      look: a pure function, at a module's top level so that its program is compiled once; gives a pytree of arrays.
      config: the network; how it would be trained and recorded does not matter.
      hypers: σ_w and σ_b, of one setting or several.
      seeds: how many (0, 1, …) or which.
      inputs: as the network sees them, [B, features]; the same for all networks.
      labels: their classes, [B]; None: all 0. Only `Network.step` looks at them.
      classes: number of logits.
      float64: compute in float64, with the same float32 weights; not `Network.step`.

    Returns:
      The look's pytree with NumPy arrays [settings, seeds, …].

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
        found = parallel.gather(where, _program(look, config, classes, where)(shared, placed))
    return jax.tree.map(lambda value: value.reshape(len(settings), len(seeds), *value.shape[1:]), found)


@lru_cache(maxsize=64)
def _program(look: Look, config: Config, classes: int, where: parallel.Layout) -> Callable[..., Any]:
    program = Program(config, classes, config.batch_size, ONE_DEVICE)

    def one_network(shared: tuple[jax.Array, jax.Array], lane: Lane) -> Any:
        x, y = shared
        key = purpose_key(lane.key, "init")
        drawn = initial_variables(config, classes, lane.hypers, key, x.astype(jnp.float32))
        variables = jax.tree.map(lambda leaf: leaf.astype(x.dtype), drawn)
        return look(Network(program, lane, variables, x, y))

    return parallel.program(where, one_network)


def per_layer(function: Callable[..., jax.Array], *arrays: Mapping[str, jax.Array]) -> jax.Array:
    """`function` of each layer's arrays [B, width], in the layers' order and stacks unstacked, as [layers, …].

    Args:
      function: pure; what it gives has the same shape for all layers.
      arrays: by layer, as `Seen` has them.
    """
    rows = [
        jax.vmap(function)(*(one.values for one in layer))
        if layer[0].is_stack
        else function(*(one.values for one in layer))[None]
        for layer in zip(*map(groups, arrays), strict=True)
    ]
    return jnp.concatenate(rows)
