"""Statistics in the user's own training loop: an optimizer that keeps them in its state.

`optax.snapshot("raw", weights.norm_statistics)` records one point of a chain at every step. `watch` also compares two
points (a cosine, the share that clipping changed), read the parameters, and measure only every k-th step.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vgjax.config import LARGEST
from vgjax.network.layer_names import weight_groups
from vgjax.statistics.families import FAMILIES, Statistic, all_statistics, chosen, statistics_of
from vgjax.statistics.histograms import N_BINS, bin_edges, histogram_metadata, tensorboard_histogram
from vgjax.statistics.view import Points, View
from vgjax.statistics.weights import Statistics


class WatchState(NamedTuple):
    """The state of a watched optimizer: `optax.tree.get(opt_state, "gradient_rms")` works inside `jit` too."""

    clip: optax.OptState
    optimizer: optax.OptState
    done: jax.Array  # number of updates so far
    step: jax.Array  # the update measured last, counted from 0; −1 before the first
    record: Statistics  # the last measurement, each [layers, …]. Zeros before the first one: an optimizer around this
    # one that adds old and new states, such as lookahead, would keep NaN for ever
    layers: jax.Array  # the layers' names, one a line, as UTF-8 bytes: all of a state must be arrays


class Watched(NamedTuple):
    """The last record of a watched optimizer, on the host."""

    step: int | np.ndarray  # [lanes] of a state under vmap
    layers: tuple[str, ...]
    statistics: dict[str, np.ndarray]  # name → [layers, …], or [lanes, layers, …]


def watch(
    optimizer: optax.GradientTransformation,
    clip: optax.GradientTransformation | None = None,
    *,
    every: int = 1,
    record: str | Collection[str] = "norms",
    stacked: str = "",
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, with statistics of every layer in its state: g → clip → c → optimizer → ΔW.

    Args:
      optimizer: any Optax transformation; its updates do not change.
      clip: the transformation before it; the gradient is recorded before and after it, and `watch(adam, clip)` stands
        for `optax.chain(clip, adam)`. Without it there are no statistics of the clipped gradient.
      every: measure updates 0, every, 2·every …; the others cost next to nothing (under `vmap` all cost the same).
        Statistics are float32; of float64 gradients (JAX_ENABLE_X64), only norms and weights can be recorded.
      record: families of statistics: norms, spread, weights, points, gradient_histogram, weight_histogram,
        update_histogram (see `vgjax list families`), or all.
      stacked: paths of stacked layers, as `vgjax.network.layer_names.weight_groups` takes them.

    Returns:
      An Optax transformation. Read its state with `watched`, `scalars`, `histograms`.

    Raises:
      ValueError: `optimizer` or `clip` is not an Optax transformation; a family is unknown; `every` is not a whole
        number from 1. At init: there are no weights, or `stacked` fits no layer. At update: a family needs the
        parameters and none are given, or the gradients have other layers than at init.
    """
    _check_transformations(optimizer, clip)
    every = _whole(every)
    families = _families(record, stacked)
    kept = [one for one in statistics_of(families) if clip or not one.name.startswith("clipped_")]
    first = optax.with_extra_args_support(clip or optax.identity())
    then = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> WatchState:
        layers = _names(params, stacked)
        if not layers and jax.tree.leaves(params):  # `optax.tree.map_params` comes with an empty tree
            raise ValueError("no layers to watch: no parameter has floating numbers in two or more dimensions")
        nothing = {one.name: _zeros(one, len(layers)) for one in kept}
        text = jnp.asarray(np.frombuffer("\n".join(layers).encode(), np.uint8))
        zero = jnp.zeros((), jnp.int32)
        return WatchState(first.init(params), then.init(params), zero, zero - 1, nothing, text)

    def update(
        gradients: optax.Updates, state: WatchState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, WatchState]:
        if params is None and (needing := [name for name in families if FAMILIES[name].needs_params]):
            raise ValueError(f"{', '.join(sorted(needing))} need the parameters: update(gradients, state, params)")

        def transformed() -> tuple[Points, optax.OptState, optax.OptState]:
            clipped, clip_state = first.update(gradients, state.clip, params, **extra)
            updates, optimizer_state = then.update(clipped, state.optimizer, params, **extra)
            return Points(gradients, clipped, updates), clip_state, optimizer_state

        def measured(points: Points) -> tuple[jax.Array, Statistics]:
            _check_layers(_names(gradients, stacked), None if params is None else _names(params, stacked), state)
            found = _measured(families, View(gradients, points, params), stacked)
            return state.done, {one.name: found[one.name] for one in kept}

        points, clip_state, optimizer_state = transformed()
        is_measured, last = state.done % every == 0, (state.step, state.record)
        if isinstance(is_measured, jax.core.Tracer):
            # This branch computes the update once more. If it read `points`, XLA could not fuse the steps of the chain.
            last = jax.lax.cond(is_measured, lambda: measured(transformed()[0]), lambda: last)
        elif is_measured:  # outside `jit`, `cond` is compiled at every step
            last = measured(points)
        done = optax.safe_increment(state.done)
        return points.updates, WatchState(clip_state, optimizer_state, done, *last, state.layers)

    return optax.GradientTransformationExtraArgs(init, update)


def watchable_families() -> list[str]:
    """The families that `watch` can record."""
    return [name for name, family in FAMILIES.items() if family.from_outside]


def watched(opt_state: optax.OptState) -> Watched:
    """The last record in an optimizer's state, on the host; `step` says of which update, counted from 0.

    Args:
      opt_state: anything that holds the state of one watched optimizer: `state.opt_state`, a chain's state, or
        `nnx.Optimizer`'s.

    Raises:
      ValueError: it holds none, or several.
    """

    def is_ours(node: Any) -> bool:
        return isinstance(node, WatchState)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(node)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} watched optimizers in this state; allowed: one, made by vgjax.watch")
    state = found[0]
    step, text = _array(state.step), _array(state.layers)
    layers = bytes(text.reshape(-1, text.shape[-1])[0]).decode().split("\n")
    statistics = {name: _array(values) for name, values in state.record.items()}
    if (step < 0).all():
        statistics = {n: np.full_like(x, np.nan) if x.dtype.kind == "f" else x for n, x in statistics.items()}
    return Watched(step if step.ndim else int(step), tuple(layers), statistics)


def scalars(opt_state: optax.OptState) -> dict[str, float]:
    """The last record as any metric writer takes it: {"gradient/rms/LAYER": …}.

    Args:
      opt_state: as for `watched`.

    Raises:
      ValueError: as for `watched`; the state is one of several lanes under `vmap`.
    """
    return {
        _tag(name, layer): float(value)
        for name, layers, values in _one_lane(opt_state)
        for layer, value in zip(layers, values, strict=True)
        if not _is_histogram(name)
    }


def histograms(opt_state: optax.OptState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The histograms of the last record for CLU's `SummaryWriter`, binned already, so that nothing large is written.

    `writer.write_summaries(step, *vgjax.histograms(opt_state))`

    Args:
      opt_state: as for `watched`.

    Returns:
      {"gradient/histogram/LAYER": float64 [k, 3] of (left, right, count)}, and the metadata of each.

    Raises:
      ValueError: as for `scalars`.
    """
    edges = bin_edges()
    summaries = {
        _tag(name, layer): tensorboard_histogram(counts, *edges)
        for name, layers, values in _one_lane(opt_state)
        for layer, counts in zip(layers, values, strict=True)
        if _is_histogram(name)
    }
    return summaries, {tag: histogram_metadata() for tag in summaries}


def _is_histogram(name: str) -> bool:
    return "bin" in all_statistics()[name].dims


def _one_lane(opt_state: optax.OptState) -> list[tuple[str, tuple[str, ...], np.ndarray]]:
    step, layers, statistics = watched(opt_state)
    if not isinstance(step, int):
        raise ValueError(f"this is the state of {step.size} lanes; take one: jax.tree.map(lambda x: x[0], opt_state)")
    return [(name, layers, values) for name, values in statistics.items()]


def _tag(name: str, layer: str) -> str:
    return f"{name.replace('_', '/', 1)}/{layer}"


def _check_transformations(*given: Any) -> None:
    for tx in given:
        if tx is not None and not (hasattr(tx, "init") and hasattr(tx, "update")):
            what = f"{reprlib.repr(tx)} cannot be watched"
            raise ValueError(f"{what}; allowed: an Optax transformation, as optax.adam(1e-3)")


def _families(record: Any, stacked: Any) -> list[str]:
    record = (record,) if isinstance(record, str) else record
    if not isinstance(record, Collection) or not isinstance(stacked, str):
        raise ValueError(f"record={record!r}, stacked={stacked!r} are not allowed; allowed: names, and one text")
    return chosen(record, watchable_families())


def _measured(families: list[str], view: View, stacked: str) -> Statistics:
    found = Statistics()
    for family in families:
        found |= FAMILIES[family].make(None, view, stacked)
    return found


def _whole(every: Any) -> int:
    if not hasattr(every, "__index__") or isinstance(every, bool) or not 1 <= every <= LARGEST:
        raise ValueError(f"every={every!r} is not allowed; allowed: whole numbers from 1 to {LARGEST}")
    return operator.index(every)


def _check_layers(given: list[str], of_params: list[str] | None, state: WatchState) -> None:
    """Refuse gradients of other layers than at init, since a record's rows have the names of those."""
    if of_params is not None and given != of_params:
        others = ", ".join(sorted({*given} ^ {*of_params}))
        raise ValueError(f"not both gradients and parameters have {others}; allowed: the same layers")
    for rows in state.record.values():
        if len(rows) != len(given):
            raise ValueError(f"gradients of {len(given)} layers are not allowed; allowed: {len(rows)}, as at init")


def _names(tree: Any, stacked: str) -> list[str]:
    return [name for group in weight_groups(tree, stacked) for name in group.names]


def _zeros(statistic: Statistic, layers: int) -> jax.Array:
    """What the state holds before the first measurement."""
    if "bin" in statistic.dims:
        return jnp.zeros((layers, N_BINS), jnp.int32)
    return jnp.zeros(layers, jnp.float32)


def _array(leaf: Any) -> np.ndarray:
    return np.asarray(jax.tree.leaves(leaf)[0])  # `nnx.Optimizer` keeps every leaf in a box
