"""The MLP family's dense layer: Flax's, with its pre-activations perturbed, and with small gradients fast on CPU."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

LARGEST_SMALL = 2**18  # multiplications; larger products are shared among a CPU's threads, which pays more


def dot_general(x: jax.Array, w: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """The product xW of inputs [B, fan_in] and weights [fan_in, fan_out], as `flax.linen.Dense` asks for it.

    The weight gradient xᵀδ of a small layer takes its xᵀ written out, on CPU: XLA leaves a product that contracts the
    first axis of both to a slower library, which takes a tenth more to twice as long. Forward and reverse mode, of any
    order, as of `jax.lax.dot_general`.
    """

    def forward(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, w, dimension_numbers, **options)

    if len(x) * w.size > LARGEST_SMALL:
        return forward(x, w)
    product = jax.custom_jvp(forward)

    @product.defjvp
    def derivative(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (x, w), (dx, dw) = primals, tangents
        columns = jax.lax.platform_dependent(x, cpu=lambda x: jax.lax.optimization_barrier(x.T), default=lambda x: x.T)
        along_w = jax.lax.dot_general(columns, dw, (((0,), (0,)), ((), ())), **options)
        return forward(x, w), forward(dx, w) + along_w

    return product(x, w)


class Dense(nn.Dense):
    """A dense layer of inputs [B, fan_in]; the loss's gradient with respect to its perturbation `z` is δ."""

    dot_general: Any = dot_general

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.perturb("z", super().__call__(x))
