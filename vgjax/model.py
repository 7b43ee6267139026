"""The MLP family as Flax modules: plain, normalised, residual; and its initial parameters.

The model returns its logits and what its layers saw; what nobody uses of that, jit prunes.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgjax.activations import activation
from vgjax.config import Config, Hypers
from vgjax.initializers import initializer, is_data_dependent, weight_variance
from vgjax.layers import group, stack_name, unstacked

Variables = dict[str, Any]

SHORTEST_STACK = 12  # fewer layers compile fast enough, and run faster, one by one


class Seen(NamedTuple):
    """What each layer saw, by its name: [B, width], or [layers, B, width] for a stack."""

    inputs: dict[str, jax.Array]  # what the weights multiply
    pre_activations: dict[str, jax.Array]  # z = Wh + b, before any norm
    phi_inputs: dict[str, jax.Array]  # what the activation is applied to; the last layer has none
    activations: dict[str, jax.Array]  # what the layer hands on; of the last layer, the logits


class MLP(nn.Module):
    """A multi-layer perceptron: `layer_1` … `layer_L`, the last one giving the logits.

    Where many hidden layers in a row have one width they are one stack, scanned: `layers_2_to_240` (see `stacks`).

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
        self,
        x: jax.Array,
        *,
        train: bool,
        mask: jax.Array | None = None,
        probes: dict[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, Seen]:
        """Args:
          x: inputs, scaled [B, features].
          train: batch norm by the batch's statistics (True) or the running averages.
          mask: which examples count in batch norm's statistics [B], or None for all.
          probes: added to the pre-activations of each layer (zeros, to take the loss's gradient δ with respect to
            them), or None.

        Returns:
          logits [B, classes], and what each layer saw.
        """
        config = self.config
        seen = Seen({}, {}, {}, {})
        stacked = {first: last for first, last in stacks(config)}
        if config.norm_at == "network_input":
            x = _Norm(self, train, mask)("norm_0", x)
        i, output = 1, len(config.hidden) + 1
        while i < output:
            last = stacked.get(i, i)
            name = stack_name(i, last) if i in stacked else f"layer_{i}"
            probe = None if probes is None else probes[name]
            if i in stacked:
                x, one = self._scan(name, last - i + 1, train)(x, probe, mask)
            else:
                x, one = _hidden_layer(self, f"_{i}", config.hidden[i - 1], x, probe, train, mask)
            for kind, value in zip(seen, one, strict=True):
                kind[name] = value
            i = last + 1
        name = f"layer_{output}"
        logits = _dense(self, name, self.classes, config.output_initializer or config.initializer)(x)
        if probes is not None:
            logits = logits + probes[name]
        seen.inputs[name], seen.pre_activations[name], seen.activations[name] = x, logits, logits
        return logits, seen

    def _scan(self, name: str, length: int, train: bool) -> nn.Module:
        stack = nn.scan(
            _Block,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=length,
        )
        return stack(self.config, self.classes, self.axis_name, train, name=name)


class _Block(nn.Module):
    """One hidden layer of a stack."""

    config: Config
    classes: int
    axis_name: str | None
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, probe: jax.Array | None, mask: jax.Array | None) -> tuple[jax.Array, Layer]:
        return _hidden_layer(self, "", x.shape[-1], x, probe, self.train, mask)


class Layer(NamedTuple):
    """What one hidden layer saw, in the order of `Seen`."""

    inputs: jax.Array
    pre_activations: jax.Array
    phi_inputs: jax.Array
    activations: jax.Array


def _hidden_layer(
    home: Any,
    suffix: str,
    width: int,
    x: jax.Array,
    probe: jax.Array | None,
    train: bool,
    mask: jax.Array | None,
) -> tuple[jax.Array, Layer]:
    """One hidden layer, its modules in `home`: dense, norm and activation in the config's order, and the branch."""
    config, norm = home.config, _Norm(home, train, mask)
    inputs = norm(f"norm{suffix}", x) if config.norm_at == "layer_inputs" else x
    z = _dense(home, f"layer{suffix}", width, config.initializer)(inputs)
    if probe is not None:
        z = z + probe
    phi_input = norm(f"norm{suffix}", z) if config.norm_at == "pre_activation" else z
    h = activation(config.activation)(phi_input)
    if config.norm_at == "post_activation":
        h = norm(f"norm{suffix}", h)
    if config.branch != "plain" and x.shape == h.shape:
        alpha = home.param(f"alpha{suffix}", nn.initializers.zeros_init(), ()) if config.branch == "rezero" else 1.0
        h = x + alpha * h
    return h, Layer(inputs, z, phi_input, h)


def _dense(home: Any, name: str, width: int, named: Any) -> nn.Dense:
    return nn.Dense(
        width,
        use_bias=home.config.bias,
        kernel_init=initializer(named),
        name=name,
    )


class _Norm(NamedTuple):
    """The config's normalisation, its modules in `home`."""

    home: Any
    train: bool
    mask: jax.Array | None

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        config = self.home.config
        if config.norm == "batch":
            norm = nn.BatchNorm(
                use_running_average=not self.train,
                use_fast_variance=False,
                momentum=config.norm_momentum,
                epsilon=config.norm_epsilon,
                axis_name=self.home.axis_name,
                name=name,
            )
            return norm(x, mask=None if self.mask is None else self.mask[:, None])
        if config.norm == "layer":
            return nn.LayerNorm(epsilon=config.norm_epsilon, use_fast_variance=False, name=name)(x)
        return x


def stacks(config: Config) -> list[tuple[int, int]]:
    """The runs of hidden layers that are scanned as one stack, (first, last) each: all as wide as the layer below.

    Compiling then takes as long for 240 layers as for one. What looks at single parameters or layers keeps layers
    apart: clipping by layer or unit, initializers that look at data, and optimizers of the user's own.
    """
    by_layer = config.clip in ("layer_norm", "agc") or callable(config.optimizer) or ":" in config.optimizer
    if by_layer or is_data_dependent(config.initializer):
        return []
    is_square = [below == width for below, width in itertools.pairwise(config.hidden)]
    runs = [list(run) for square, run in itertools.groupby(enumerate(is_square, 2), lambda x: x[1]) if square]
    return [(run[0][0], run[-1][0]) for run in runs if len(run) >= SHORTEST_STACK]


def initial_variables(config: Config, classes: int, hypers: Hypers, key: jax.Array, inputs: jax.Array) -> Variables:
    """Initial parameters and batch statistics: W = σ_w · initializer, b ~ N(0, σ_b²).

    Every weight and bias has a key of its own, derived from its path (`layer_3/kernel`), stacked or not; norms start
    as the identity, the α of ReZero at 0.

    Args:
      config, classes: the network.
      hypers: σ_w and σ_b (may be traced).
      key: of the whole network.
      inputs: a first batch, scaled [B, features]; data-dependent initializers look at it.

    Returns:
      {"params": …, "batch_stats": … where there is batch norm}.
    """
    model = MLP(config, classes)
    shapes = jax.eval_shape(lambda: model.init(key, inputs, train=False))
    variables = jax.tree_util.tree_map_with_path(_identity, shapes)
    output = f"layer_{len(config.hidden) + 1}"
    for module, leaves in shapes["params"].items():
        if module.startswith("layer"):
            named = config.output_initializer if module == output else ""
            dense = leaves["layer"] if module.startswith("layers_") else leaves
            drawn = _draw(module, dense, initializer(named or config.initializer), hypers, key)
            variables["params"][module] |= {"layer": drawn} if module.startswith("layers_") else drawn
    variables["params"] = _unit_variance(model, variables, inputs)
    return variables | {"params": _scale_weights(variables["params"], hypers.sigma_w)}


def _identity(path: tuple[Any, ...], shape: Any) -> jax.Array:
    """Scales and variances of norms are 1, all else 0."""
    return jnp.full(shape.shape, 1 if path[-1].key in ("scale", "var") else 0, shape.dtype)


def _draw(module: str, dense: Any, init: Callable[..., jax.Array], hypers: Hypers, key: jax.Array) -> Variables:
    """The weights and biases of a dense layer, or of all those of a stack."""
    layer = group(module, dense["kernel"])

    def leaf(name: str, draw: Callable[..., jax.Array]) -> jax.Array:
        shape, dtype = dense[name].shape[layer.is_stack :], dense[name].dtype
        paths = [zlib.crc32(f"{one}/{name}".encode()) for one in layer.names]
        if not layer.is_stack:
            return draw(jax.random.fold_in(key, paths[0]), shape, dtype)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(paths, jnp.uint32))
        return jax.lax.map(lambda key: draw(key, shape, dtype), keys)

    leaves = {"kernel": leaf("kernel", init)}
    if "bias" in dense:
        leaves["bias"] = hypers.sigma_b * leaf("bias", jax.random.normal)
    return leaves


def _unit_variance(model: MLP, variables: Variables, inputs: jax.Array) -> Variables:
    """LSUV, where asked for: layer by layer, divide the weights by the standard deviation of their pre-activations."""
    params, config = variables["params"], model.config
    named = [config.initializer] * len(config.hidden) + [config.output_initializer or config.initializer]
    for i in (i for i, name in enumerate(named, 1) if is_data_dependent(name)):
        (_, seen), _ = model.apply({**variables, "params": params}, inputs, train=True, mutable=["batch_stats"])
        name = f"layer_{i}"
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
            is_output = name == f"layer_{len(config.hidden) + 1}"
            named = config.output_initializer if is_output and config.output_initializer else config.initializer
            rows.append(ModuleRow(name, "dense", fan_out, count, fan_in * weight_variance(named, fan_in, fan_out)))
        else:
            kind = "alpha" if name.startswith("alpha_") else f"{config.norm} norm"
            rows.append(ModuleRow(name, kind, both[0].size, count, None))
    return rows


def _place(config: Config, name: str) -> tuple[int, int]:
    """Where a module stands in the network: its layer, and its turn within it."""
    kind, index = name.split("_")
    first = ["norm", "layer"] if config.norm_at in ("layer_inputs", "network_input") else ["layer", "norm"]
    return int(index), [*first, "alpha"].index(kind)
