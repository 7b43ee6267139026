"""Optimizers, clipping and schedules as Optax chains; this module adds only what Optax lacks."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vgjax.config import Config, Hypers
from vgjax.names import Entry, resolve
from vgjax.network.layer_names import is_weight
from vgjax.statistics.view import Points


def scale_by_keras_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7) -> optax.GradientTransformation:
    """Keras's Adam: m √(1−β₂ᵗ) / ((1−β₁ᵗ)(√v + ε)), with ε outside the bias correction.

    Optax has ε inside it. For gradients near ε, as vanishing gradients are, the two differ by more than a factor of 10.

    Source: Kingma & Ba 2015, 1412.6980, the variant at the end of section 2; Keras ``optimizers.Adam``.
    """
    adam = optax.scale_by_adam(b1, b2)

    def update(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[optax.Updates, optax.OptState]:
        _, state = adam.update(updates, state, params)
        t = state.count.astype(jnp.float32)
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        return jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), state.mu, state.nu), state

    return optax.GradientTransformation(adam.init, update)


def clip_by_layer_norm(max_norm: float | jax.Array) -> optax.GradientTransformation:
    """Scale the gradient of each parameter separately to ‖g‖ ≤ max_norm (Keras's ``clipnorm``)."""

    def clip(g: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(g.ravel())
        return jnp.where(norm > max_norm, g * (max_norm / jnp.where(norm > 0, norm, jnp.ones_like(norm))), g)

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


OPTIMIZERS: dict[str, Entry] = {
    "sgd": Entry(optax.identity, "gradient descent", "Robbins & Monro 1951"),
    "momentum": Entry(lambda decay=0.9: optax.trace(decay), "heavy ball; decay 0.9", "Polyak 1964"),
    "nesterov": Entry(lambda decay=0.9: optax.trace(decay, nesterov=True), "decay 0.9", "Sutskever et al. 2013"),
    "adam": Entry(optax.scale_by_adam, "b1 0.9, b2 0.999, eps 1e-8, as Optax", "Kingma & Ba 2015, 1412.6980"),
    "keras_adam": Entry(scale_by_keras_adam, "b1 0.9, b2 0.999, eps 1e-7, as Keras", "keras.optimizers.Adam"),
    "adamw": Entry(
        optax.scale_by_adam, "Adam, decoupled decay only, by --weight-decay", "Loshchilov & Hutter 2019, 1711.05101"
    ),
    "rmsprop": Entry(optax.scale_by_rms, "decay 0.9, eps 1e-8", "Hinton 2012, lecture 6e"),
}

# Each row makes a transformation from the threshold.
CLIPS: dict[str, Entry] = {
    "none": Entry(lambda threshold: optax.identity(), "the gradient as it is", "—"),
    "value": Entry(optax.clip, "each entry to ±threshold", "Mikolov 2012"),
    "global_norm": Entry(
        optax.clip_by_global_norm, "the whole gradient to ‖g‖ ≤ threshold", "Pascanu et al. 2013, 1211.5063"
    ),
    "layer_norm": Entry(clip_by_layer_norm, "each parameter's gradient to ‖g‖ ≤ threshold by itself", "Keras clipnorm"),
    "agc": Entry(
        optax.adaptive_grad_clip, "each unit's gradient to ‖g‖ ≤ threshold · ‖w‖", "Brock et al. 2021, 2102.06171"
    ),
}

# A schedule is a function total_steps → (count → factor), with factors up to 1; the learning rate multiplies them.
SCHEDULES: dict[str, Entry] = {
    "constant": Entry(lambda: lambda steps: optax.constant_schedule(1.0), "the learning rate throughout", "—"),
    "cosine": Entry(
        lambda alpha=0.0: lambda steps: optax.cosine_decay_schedule(1.0, steps, alpha),
        "half a cosine down to alpha · learning rate; alpha 0",
        "Loshchilov & Hutter 2017, 1608.03983",
    ),
    "linear": Entry(
        lambda end=0.0: lambda steps: optax.linear_schedule(1.0, end, steps),
        "straight down to end · learning rate; end 0",
        "optax.linear_schedule",
    ),
    "exponential": Entry(
        lambda rate=0.1: lambda steps: optax.exponential_decay(1.0, steps, rate),
        "down to rate · learning rate at the last step; rate 0.1",
        "optax.exponential_decay",
    ),
    "warmup_cosine": Entry(
        lambda warmup=0.1: (
            lambda steps: optax.warmup_cosine_decay_schedule(
                0.0, 1.0, max(1, round(warmup * steps)), max(2, round(warmup * steps) + 1, steps)
            )
        ),
        "straight up for a share `warmup` of the steps, then cosine; warmup 0.1",
        "Goyal et al. 2017, 1706.02677",
    ),
}


class Chain(NamedTuple):
    """An optimizer in two parts, clip and move, so that the gradient can be recorded between them."""

    scale: float  # multiplies the gradient first
    clip: optax.GradientTransformation
    move: optax.GradientTransformation

    def init(self, params: optax.Params) -> tuple[optax.OptState, optax.OptState]:
        """The states of both parts."""
        return self.clip.init(params), self.move.init(params)

    def update(self, gradients: optax.Updates, state: tuple, params: optax.Params) -> tuple[optax.Updates, tuple]:
        """The updates and the new state, as of any Optax transformation."""
        points, state = self.points(gradients, state, params)
        return points.updates, state

    def points(self, gradients: optax.Updates, state: tuple, params: optax.Params) -> tuple[Points, tuple]:
        """The gradient at three points (raw, clipped, final updates), and the new state."""
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes its integer count with floats
            raw = gradients if self.scale == 1 else jax.tree.map(lambda g: g * self.scale, gradients)
            clipped, clip_state = self.clip.update(raw, state[0], params)
            updates, move_state = self.move.update(clipped, state[1], params)
        return Points(raw, clipped, updates), (clip_state, move_state)


def make_optimizer(config: Config, hypers: Hypers, total_steps: int) -> Chain:
    """Make the whole chain: rescale (for sums) → clip → l2 decay → optimizer → decoupled decay → learning rate.

    Args:
      config: its optimizer, schedule, clip, decay, reduction and batch_size.
      hypers: learning rate, weight decay, clip threshold; they may be traced, if the chain is made inside the function
        under `vmap`.
      total_steps: length of the schedule [steps].

    Returns:
      An Optax transformation, whose updates are to be added to the parameters; its `points` gives the gradient on its
      way.

    Raises:
      ValueError: an unknown name, or adamw with l2 decay.
    """
    if str(config.optimizer).partition("(")[0].strip() == "adamw" and config.decay == "l2":
        raise ValueError("decay 'l2' is not allowed with optimizer 'adamw'; allowed: decoupled")
    decay = optax.add_decayed_weights(hypers.weight_decay, mask=_weights_only)
    shape = resolve("schedule", SCHEDULES, config.schedule)(total_steps)
    move = optax.chain(
        decay if config.decay == "l2" else optax.identity(),
        _direction(config.optimizer),
        decay if config.decay == "decoupled" else optax.identity(),
        optax.scale_by_learning_rate(lambda count: hypers.learning_rate * shape(count)),
    )
    scale = 1 / config.batch_size if config.reduction == "sum" else 1.0
    return Chain(scale, CLIPS[config.clip].make(hypers.clip_threshold), move)


def zeroed(points: Points) -> jax.Array:
    """Whether clipping turned the whole gradient of a parameter to zeros, although it was not zero; bool.

    Optax computes norms as plain sums of squares: above 1.8·10¹⁹ they overflow float32, and a gradient divided by an
    infinite norm is 0.
    """

    def is_lost(raw: jax.Array, clipped: jax.Array) -> jax.Array:
        return jnp.any(raw != 0) & ~jnp.any(clipped != 0)

    return jnp.any(jnp.stack(jax.tree.leaves(jax.tree.map(is_lost, points.raw, points.clipped))))


def _direction(named: Any) -> optax.GradientTransformation:
    """The optimizer without its learning rate.

    A user's factory is called with a learning rate of 1; its updates have a minus sign, which is turned back here.
    """
    found = resolve("optimizer", OPTIMIZERS, named)
    if isinstance(found, optax.GradientTransformation):
        return found
    return optax.chain(found(learning_rate=1.0), optax.scale(-1.0))


def _weights_only(params: optax.Params) -> Any:
    """A mask that is true for weight matrices, and false for biases and norm parameters."""
    return jax.tree_util.tree_map_with_path(is_weight, params)
