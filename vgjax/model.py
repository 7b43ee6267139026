"""The MLP family as Flax modules: plain, normalised, residual; and its initial parameters.

The model returns its logits and its intermediates; what nobody uses of these, jit prunes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgjax.activations import activation
from vgjax.config import Config, Hypers
from vgjax.initializers import initializer, is_data_dependent, weight_variance

Variables = dict[str, Any]


class MLP(nn.Module):
    """A multi-layer perceptron: `layer_1` … `layer_L`, the last one giving the logits.

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
        self, x: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, list[jax.Array]]]:
        """Args:
          x: inputs, scaled [B, features].
          train: batch norm by the batch's statistics (True) or the running averages.
          mask: which examples count in batch norm's statistics [B], or None for all.

        Returns:
          logits [B, classes]; and the intermediates, one a layer: "pre_activations" (z = Wh + b, before any norm)
          and "activations" (what the layer hands on).
        """
        config = self.config
        phi = activation(config.activation)
        z_all, h_all = [], []
        if config.norm_at == "network_input":
            x = self._normalise("norm_0", x, train, mask)
        for i, width in enumerate(config.hidden, 1):
            h = self._normalise(f"norm_{i}", x, train, mask) if config.norm_at == "layer_inputs" else x
            z = self._dense(f"layer_{i}", width, config.initializer)(h)
            z_all.append(z)
            if config.norm_at == "pre_activation":
                z = self._normalise(f"norm_{i}", z, train, mask)
            h = phi(z)
            if config.norm_at == "post_activation":
                h = self._normalise(f"norm_{i}", h, train, mask)
            x = self._join(i, x, h)
            h_all.append(x)
        output_initializer = config.output_initializer or config.initializer
        logits = self._dense(f"layer_{len(config.hidden) + 1}", self.classes, output_initializer)(x)
        z_all.append(logits)
        return logits, {"pre_activations": z_all, "activations": h_all}

    def _dense(self, name: str, width: int, named: Any) -> nn.Dense:
        return nn.Dense(
            width,
            use_bias=self.config.bias,
            kernel_init=initializer(named),
            bias_init=nn.initializers.normal(1.0),  # times σ_b, in `initial_variables`
            name=name,
        )

    def _normalise(self, name: str, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        if self.config.norm == "batch":
            norm = nn.BatchNorm(
                use_running_average=not train,
                use_fast_variance=False,
                momentum=self.config.norm_momentum,
                epsilon=self.config.norm_epsilon,
                axis_name=self.axis_name,
                name=name,
            )
            return norm(x, mask=None if mask is None else mask[:, None])
        if self.config.norm == "layer":
            return nn.LayerNorm(epsilon=self.config.norm_epsilon, use_fast_variance=False, name=name)(x)
        return x

    def _join(self, i: int, x: jax.Array, h: jax.Array) -> jax.Array:
        if self.config.branch == "plain" or x.shape != h.shape:
            return h
        if self.config.branch == "rezero":
            return x + self.param(f"alpha_{i}", nn.initializers.zeros_init(), ()) * h
        return x + h


def initial_variables(config: Config, classes: int, hypers: Hypers, key: jax.Array, inputs: jax.Array) -> Variables:
    """Initial parameters and batch statistics: W = σ_w · initializer, b ~ N(0, σ_b²).

    Args:
      config, classes: the network.
      hypers: σ_w and σ_b (may be traced).
      key: every parameter's own key is derived from it by the parameter's path.
      inputs: a first batch, scaled [B, features]; data-dependent initializers look at it.

    Returns:
      {"params": …, "batch_stats": … where there is batch norm}.
    """
    model = MLP(config, classes)
    variables = dict(model.init(key, inputs, train=False))
    variables["params"] = _scale_layers(variables["params"], "bias", hypers.sigma_b)
    variables["params"] = _unit_variance(model, variables, inputs)
    variables["params"] = _scale_layers(variables["params"], "kernel", hypers.sigma_w)
    return variables


def _unit_variance(model: MLP, variables: Variables, inputs: jax.Array) -> Variables:
    """LSUV, where asked for: layer by layer, divide the weights by the standard deviation of their pre-activations."""
    params, config = variables["params"], model.config
    named = [config.initializer] * len(config.hidden) + [config.output_initializer or config.initializer]
    for i in (i for i, name in enumerate(named) if is_data_dependent(name)):
        (_, seen), _ = model.apply({**variables, "params": params}, inputs, train=True, mutable=["batch_stats"])
        std = jnp.std(seen["pre_activations"][i])
        divisor = jnp.where(std > 0, std, jnp.ones_like(std))
        name = f"layer_{i + 1}"
        params = {**params, name: {**params[name], "kernel": params[name]["kernel"] / divisor}}
    return params


def _scale_layers(params: Variables, leaf: str, factor: Any) -> Variables:
    """Multiply one kind of leaf of the dense layers."""
    return {
        name: {**layer, leaf: factor * layer[leaf]} if name.startswith("layer_") and leaf in layer else layer
        for name, layer in params.items()
    }


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
    params, averages = shapes["params"], shapes.get("batch_stats", {})
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
