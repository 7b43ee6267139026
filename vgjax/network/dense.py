"""The dense layer of the MLP family: Flax's `Dense`, with perturbed pre-activations and fast small gradients on CPU."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

LARGEST_SMALL = 2**18  # multiplications; the slower library uses several threads, which wins for larger products


def dot_general(x: jax.Array, w: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """The product xW of inputs [B, fan_in] and weights [fan_in, fan_out], as `flax.linen.Dense` asks for it.

    On CPU, the weight gradient xᵀδ of a small layer is computed from a transposed copy of x. XLA gives a product that
    contracts the first axis of both factors to a slower library, which took 1.1 to 2 times as long when measured (256
    lanes on Iris ran 4 to 12 % faster with the copy). The barrier keeps XLA from merging the copy into the product. All
    this can go when XLA chooses the faster library itself. Derivatives of any order work as with `jax.lax.dot_general`.
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
