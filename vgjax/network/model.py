"""The MLP family as Flax modules: plain, normalised, residual; and its initial parameters.

The model returns its logits and what its layers saw; `jit` removes the parts that nothing uses.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgjax.activations import activation
from vgjax.config import Config, Hypers
from vgjax.initializers import initializer, is_data_dependent, weight_variance
from vgjax.network.dense import Dense
from vgjax.network.layer_names import group, layer_name, layer_names, layer_number, stack_name, unstacked

Variables = dict[str, Any]

SHORTEST_STACK = 12  # fewer layers compile fast enough, and run faster, one by one


class Seen(NamedTuple):
    """What one layer saw, arrays [B, width]; or all layers, {name: array}, with [layers, B, width] for a stack."""

    inputs: Any  # what the weights multiply
    pre_activations: Any  # z = Wh + b, before any norm
    phi_inputs: Any  # what the activation is applied to; the last layer has none
    activations: Any  # the layer's outputs; of the last layer, the logits


class MLP(nn.Module):
    """A multi-layer perceptron: `layer_1` … `layer_L`, the last one giving the logits.

    Where many hidden layers in a row have one width they are one stack, scanned: `layers_2_to_240` (see `stacks`).
    Every pre-activation is perturbed: the loss's gradient with respect to Flax's collection `perturbations` is δ.

    Attributes:
      config: widths, activation, initializers, normalisation, branch.
      classes: number of logits.
      axis_name: device axis over which batch norm takes its statistics, or None.
    """

    config: Config
    classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, mask: jax.Array | None = None, depth: jax.Array | None = None
    ) -> tuple[jax.Array, Seen]:
        """Args:
          x: inputs, scaled [B, features].
          train: batch norm by the batch's statistics (True) or the running averages.
          mask: which examples count in batch norm's statistics [B], or None for all.
          depth: the number of hidden layers, if traced (see `is_elastic`); the others are skipped. None: all.

        Returns:
          logits [B, classes], and what each layer saw.
        """
        config = self.config
        seen = Seen({}, {}, {}, {})
        if config.norm_at == "network_input":
            x = _normalise(self, "norm_0", x, train, mask)
        for first, last in _blocks(config):
            if first == last:
                name = layer_name(first)
                x, one = _hidden_layer(self, f"_{first}", config.hidden[first - 1], x, train, mask)
            else:
                name = stack_name(first, last)
                exists = None if depth is None else jnp.arange(first, last + 1) <= depth
                x, one = self._scan(name, last - first + 1, train)(x, mask, exists)
            for kind, value in zip(seen, one, strict=True):
                kind[name] = value
        name = layer_name(len(config.hidden) + 1)
        logits = _dense(self, name, self.classes, _initializers(config)[name], x)
        seen.inputs[name], seen.pre_activations[name], seen.activations[name] = x, logits, logits
        return logits, seen

    def _scan(self, name: str, length: int, train: bool) -> nn.Module:
        stack = nn.scan(
            _Block,
            variable_axes={"params": 0, "batch_stats": 0, "perturbations": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=length,
        )
        return stack(self.config, self.axis_name, train, name=name)


class _Block(nn.Module):
    """One hidden layer of a stack."""

    config: Config
    axis_name: str | None
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, exists: jax.Array | None) -> tuple[jax.Array, Seen]:
        def layer(self: _Block, x: jax.Array) -> tuple[jax.Array, Seen]:
            return _hidden_layer(self, "", x.shape[-1], x, self.train, mask)

        def skip(self: _Block, x: jax.Array) -> tuple[jax.Array, Seen]:
            return x, Seen(*[jnp.zeros_like(x)] * len(Seen._fields))

        return layer(self, x) if exists is None else nn.cond(exists, layer, skip, self, x)


def _hidden_layer(
    home: Any, suffix: str, width: int, x: jax.Array, train: bool, mask: jax.Array | None
) -> tuple[jax.Array, Seen]:
    """One hidden layer, its modules in `home`: dense, norm and activation in the config's order, and the branch."""
    config = home.config

    def norm_if_here(place: str, x: jax.Array) -> jax.Array:
        return _normalise(home, f"norm{suffix}", x, train, mask) if config.norm_at == place else x

    inputs = norm_if_here("layer_inputs", x)
    z = _dense(home, f"layer{suffix}", width, config.initializer, inputs)
    phi_input = norm_if_here("pre_activation", z)
    h = norm_if_here("post_activation", activation(config.activation)(phi_input))
    if config.branch != "plain" and x.shape == h.shape:
        alpha = home.param(f"alpha{suffix}", nn.initializers.zeros_init(), ()) if config.branch == "rezero" else 1.0
        h = x + alpha * h
    return h, Seen(inputs, z, phi_input, h)


def _dense(home: Any, name: str, width: int, named: Any, x: jax.Array) -> jax.Array:
    return Dense(width, use_bias=home.config.bias, kernel_init=initializer(named), name=name)(x)


def _normalise(home: Any, name: str, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
    """The config's normalisation, as a module of `home`."""
    config = home.config
    if config.norm == "batch":
        norm = nn.BatchNorm(
            use_running_average=not train,
            use_fast_variance=False,
            momentum=config.norm_momentum,
            epsilon=config.norm_epsilon,
            axis_name=home.axis_name,
            name=name,
        )
        return norm(x, mask=None if mask is None else mask[:, None])
    if config.norm == "layer":
        return nn.LayerNorm(epsilon=config.norm_epsilon, use_fast_variance=False, name=name)(x)
    return x


def _blocks(config: Config) -> list[tuple[int, int]]:
    """All hidden layers, (first, last) each: stacks, and single ones between them."""
    together = stacks(config)
    single = [i for i in range(1, len(config.hidden) + 1) if not any(a <= i <= b for a, b in together)]
    return sorted([*together, *((i, i) for i in single)])


def stacks(config: Config) -> list[tuple[int, int]]:
    """The stacks of hidden layers, (first, last) each: consecutive layers as wide as the layer below them.

    Compiling a scanned stack takes as long for 240 layers as for one. There are no stacks where something reads single
    layers or parameters: clipping by layer or unit, initializers that read data, and the user's own optimizers.
    """
    by_layer = config.clip in ("layer_norm", "agc") or callable(config.optimizer) or ":" in config.optimizer
    if by_layer or is_data_dependent(config.initializer):
        return []
    is_square = [below == width for below, width in itertools.pairwise(config.hidden)]
    runs = [list(run) for square, run in itertools.groupby(enumerate(is_square, 2), lambda x: x[1]) if square]
    return [(run[0][0], run[-1][0]) for run in runs if len(run) >= SHORTEST_STACK]


def of_depth(config: Config, modules: Variables) -> Variables:
    """The parameters (or batch statistics) of a network, taken from the deeper elastic network that contained it.

    Args:
      config: the network.
      modules: of the deeper network, by name.
    """
    single = unstacked(modules)
    last = max((name for name in single if name.startswith("layer_")), key=layer_number, default="")
    own = {layer_name(len(config.hidden) + 1): single[last]} if last else {}
    for first, end in _blocks(config):
        layers = range(first, end + 1)
        modules_of = {
            kind: [f"{kind}_{i}" for i in layers] for kind in ("layer", "norm", "alpha") if f"{kind}_{end}" in single
        }
        if first == end:
            own |= {name: single[name] for (name,) in modules_of.values()}
        else:
            own[stack_name(first, end)] = {
                kind: jax.tree.map(lambda *x: jnp.stack(x), *(single[name] for name in names))
                for kind, names in modules_of.items()
            }
    return own


def is_elastic(config: Config) -> bool:
    """Whether one program can train networks of any depth up to this one: all layers after the first are one stack."""
    return stacks(config) == [(2, len(config.hidden))]


def initial_variables(
    config: Config,
    classes: int,
    hypers: Hypers,
    key: jax.Array,
    inputs: jax.Array,
    depth: jax.Array | None = None,
) -> Variables:
    """Initial parameters and batch statistics: W = σ_w · initializer, b ~ N(0, σ_b²).

    Every weight and bias has a key of its own, derived from its path (`layer_3/kernel`), stacked or not; norms start
    as the identity, the α of ReZero at 0.

    Args:
      config, classes: the network.
      hypers: σ_w and σ_b (may be traced).
      key: of the whole network.
      inputs: a first batch, scaled [B, features]; data-dependent initializers look at it.
      depth: as in the model; the last layer is drawn with the key of the last layer of a network of that depth.

    Returns:
      {"params": …, "batch_stats": … where there is batch norm}.
    """
    model = MLP(config, classes)
    shapes = jax.eval_shape(lambda: model.init(key, inputs, train=False))
    del shapes["perturbations"]
    variables = jax.tree_util.tree_map_with_path(partial(_initial_leaf, config, hypers, key, depth), shapes)
    params = unit_variance(model, variables, inputs)
    return variables | {"params": _scale_weights(params, hypers.sigma_w)}


def _initial_leaf(
    config: Config, hypers: Hypers, key: jax.Array, depth: jax.Array | None, path: tuple[Any, ...], shape: Any
) -> jax.Array:
    """Weights and biases as drawn; scales and variances of norms are 1, all else 0."""
    *module, leaf = (part.key for part in path[1:])
    if leaf not in ("kernel", "bias") or not module[-1].startswith("layer"):
        return jnp.full(shape.shape, leaf in ("scale", "var"), shape.dtype)
    layer = group("/".join(module), shape)
    paths = _path_numbers(layer.names, leaf)
    if depth is not None and layer.names == (layer_name(len(config.hidden) + 1),):
        paths = _path_numbers(layer_names(len(config.hidden) + 1)[1:], leaf)[depth - 1][None]
    keys = jax.vmap(partial(jax.random.fold_in, key))(paths)

    def draw(key: jax.Array) -> jax.Array:
        one = (key, shape.shape[layer.is_stack :], shape.dtype)
        if leaf == "bias":
            return hypers.sigma_b * jax.random.normal(*one)
        return initializer(_initializers(config)[layer.names[0]])(*one)

    return jax.lax.map(draw, keys) if layer.is_stack else draw(keys[0])


def _path_numbers(layers: Sequence[str], leaf: str) -> jax.Array:
    """A number for each path `layer/leaf`, to derive its key from; CRC-32, which is the same in every process."""
    return jnp.array([zlib.crc32(f"{name}/{leaf}".encode()) for name in layers], jnp.uint32)


def _initializers(config: Config) -> dict[str, Any]:
    """{layer: its initializer, as the config names it}."""
    *hidden, last = layer_names(len(config.hidden) + 1)
    return {**dict.fromkeys(hidden, config.initializer), last: config.output_initializer or config.initializer}


def unit_variance(model: MLP, variables: Variables, inputs: jax.Array) -> Variables:
    """LSUV, where asked for: layer by layer, divide the weights by the standard deviation of their pre-activations."""
    params = variables["params"]
    for name in (name for name, named in _initializers(model.config).items() if is_data_dependent(named)):
        (_, seen), _ = model.apply({**variables, "params": params}, inputs, train=True, mutable=["batch_stats"])
        std = jnp.std(seen.pre_activations[name])
        divisor = jnp.where(std > 0, std, jnp.ones_like(std))
        params = {**params, name: {**params[name], "kernel": params[name]["kernel"] / divisor}}
    return params


def _scale_weights(params: Variables, factor: Any) -> Variables:
    """Multiply the weights of the dense layers."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: factor * leaf if path[-1].key == "kernel" else leaf, params
    )


class ModuleRow(NamedTuple):
    """One line of `vgjax show`."""

    name: str
    kind: str
    outputs: int
    parameters: int
    sigma_w2: float | None


def describe(config: Config, features: int, classes: int) -> list[ModuleRow]:
    """The network module by module, in order: width, parameter count (running averages included), σ_w².

    Args:
      config: the network.
      features: width of the input.
      classes: number of logits.

    Returns:
      One row a module; σ_w² = fan_in · Var(W) of the layer's initializer (before --sigma-w), None for norms.
    """
    inputs = jax.ShapeDtypeStruct((2, features), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: MLP(config, classes).init(key, x, train=False), jax.random.key(0), inputs)
    params, averages = (jax.eval_shape(unstacked, shapes.get(name, {})) for name in ("params", "batch_stats"))
    rows = []
    for name in sorted(params, key=lambda name: _place(config, name)):
        leaves = params[name]
        both = jax.tree.leaves((leaves, averages.get(name, {})))
        count = sum(leaf.size for leaf in both)
        if name.startswith("layer_"):
            fan_in, fan_out = leaves["kernel"].shape
            variance = weight_variance(_initializers(config)[name], fan_in, fan_out)
            rows.append(ModuleRow(name, "dense", fan_out, count, fan_in * variance))
        else:
            kind = "alpha" if name.startswith("alpha_") else f"{config.norm} norm"
            rows.append(ModuleRow(name, kind, both[0].size, count, None))
    return rows


def _place(config: Config, name: str) -> tuple[int, int]:
    """The place of a module in the network: the number of its layer, and its place in the layer."""
    kind = name.partition("_")[0]
    first = ["norm", "layer"] if config.norm_at in ("layer_inputs", "network_input") else ["layer", "norm"]
    return layer_number(name), [*first, "alpha"].index(kind)
