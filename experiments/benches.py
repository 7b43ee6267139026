"""The runs of the calibration: networks with a fault built in, and healthy ones, each labelled by how it was set up.

A bench is one network on one data set; its lanes are the runs. Benches with an even number are for building the rules,
those with an odd number for trying them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from vgjax.config import Config, Hypers

LABELS = {
    "healthy": "critical or customary weights, a customary learning rate",
    "vanishing": "ordered phase: σ_w² at half of its critical value or less, or sigmoid at σ_w² ≤ 2, and depth",
    "exploding": "chaotic phase: σ_w² at four times its critical value or more, and depth; held finite by clipping",
    "saturated": "|z| far beyond the sigmoid's bend: biases of 6 and more, large weights in few layers, or raw pixels",
    "dead": "ReLU with biases so large that half of the units see none but negative sums, or with negative weights",
    "constant": "all weights equal, or all rows and columns",
    "learning_rate_high": "a healthy run with 300 times its learning rate or more; bounded, so that it stays finite",
    "learning_rate_low": "a healthy run with a 3000th of its learning rate or less",
    "clipping": "a healthy run with elements clipped far below their size, the learning rate raised to make up for it",
    "batch_norm": "batch norm before φ in 24 layers and more, which theory says must explode",
    "underflow": "a healthy run with a last layer of 10⁻⁵ of its size or less: a level, but tiny gradient",
    "nan": "weights or learning rate that overflow float32",
}


def equal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Every weight 1/√fan_in."""
    return jnp.full(shape, shape[0] ** -0.5, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Every weight 0."""
    return jnp.zeros(shape, dtype)


def negative(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """W = −|N(0, 2/fan_in)|, except in the first layers of a network, whose inputs may be of either sign."""
    return -jnp.abs(jax.random.normal(key, shape, dtype)) * jnp.sqrt(2.0 / shape[0]).astype(dtype)


Lane = tuple[str, Hypers]


@dataclass(frozen=True)
class Bench:
    """One network and its labelled lanes."""

    config: Config
    lanes: tuple[Lane, ...]


def lanes(rate: float, **labelled: Any) -> tuple[Lane, ...]:
    """Label → dicts of what differs from Hypers(rate); `rate` in a dict multiplies it."""
    found = []
    for label, changes in labelled.items():
        for change in changes if isinstance(changes, list) else [changes]:
            fields = dict(change)
            found.append((label, Hypers(learning_rate=rate * fields.pop("rate", 1.0), **fields)))
    return tuple(found)


def w(variance: float, **fields: Any) -> dict[str, Any]:
    """σ_w² and what else."""
    return {"sigma_w": variance**0.5, **fields}


BASE = Config(dataset="digits", initializer="mean_field", batch_size=50, epochs=8, optimizer="momentum")
DIGITS = BASE
IRIS = replace(BASE, dataset="iris", scaling="standardised", batch_size=25, epochs=30)
PETAL = replace(IRIS, dataset="iris_petal")
ADAM: dict[str, Any] = {"optimizer": "adam"}
CLIPPED: dict[str, Any] = {"clip": "global_norm"}


def net(width: int, depth: int, activation: str, base: Config = DIGITS, **fields: Any) -> Config:
    """So many hidden layers of one width."""
    return replace(base, hidden=(width,) * depth, activation=activation, **fields)


def phases(rate: float, critical: float, ordered: list[float], chaotic: list[float], **more: Any) -> tuple[Lane, ...]:
    """Healthy lanes about the critical σ_w², ordered and chaotic ones, and some with a wrong learning rate."""
    healthy = [w(critical), w(critical, rate=0.5), w(0.95 * critical), w(1.1 * critical, rate=0.7)]
    return lanes(
        rate,
        healthy=healthy,
        vanishing=[w(x) for x in ordered],
        exploding=[w(x) for x in chaotic],
        learning_rate_high=[w(critical, rate=1000), w(critical, rate=3000)],
        learning_rate_low=[w(critical, rate=1e-4), w(critical, rate=3e-5)],
        **more,
    )


def plain(rate: float, *scales: float, **fields: Any) -> tuple[Lane, ...]:
    """Healthy lanes that differ in the learning rate."""
    return lanes(rate, healthy=[{"rate": scale, **fields} for scale in scales or (1.0, 0.7, 0.5, 1.2)])


def only(label: str, rate: float, *changes: dict[str, Any]) -> tuple[Lane, ...]:
    """Lanes of one label."""
    return lanes(rate, **{label: list(changes)})


RATES = lanes(1e-3, learning_rate_high={"rate": 2000}, learning_rate_low={"rate": 1e-4})
OWN = "experiments.benches:"
RAW: dict[str, Any] = {"scaling": "none"}
BATCH: dict[str, Any] = {"norm": "batch"}
LAYER: dict[str, Any] = {"norm": "layer"}
NO_CLIP: dict[str, Any] = {"clip_threshold": 100.0}

# Pairs: a bench for building, and its counterpart for the trial.
PAIRS: tuple[tuple[Bench, Bench], ...] = (
    (
        Bench(net(64, 20, "tanh"), phases(0.01, 1.1, [0.35, 0.5], [9, 14])),
        Bench(net(48, 24, "erf"), phases(0.01, 0.85, [0.3, 0.4], [8, 10])),
    ),
    (
        Bench(
            net(64, 10, "relu", **ADAM, **CLIPPED),
            phases(1e-3, 2.0, [0.4, 0.6], [10, 14], dead=[w(2, sigma_b=3), w(2, sigma_b=4), w(1.8, sigma_b=6)]),
        ),
        Bench(net(96, 8, "leaky_relu(0.1)", **CLIPPED), phases(0.02, 2.0, [0.2, 0.4], [14, 18])),
    ),
    (
        Bench(net(64, 12, "gelu", IRIS, **ADAM, **CLIPPED), phases(1e-3, 2.0, [0.5, 0.8], [12, 16])),
        Bench(net(80, 10, "swish", **CLIPPED), phases(0.02, 2.3, [0.6, 0.9], [16, 20])),
    ),
    (
        Bench(net(32, 16, "elu", IRIS, **CLIPPED), phases(0.02, 1.4, [0.35, 0.45], [7, 9])),
        Bench(net(48, 18, "selu", **ADAM, **CLIPPED), phases(5e-4, 0.85, [0.12, 0.18], [4, 6])),
    ),
    (
        Bench(net(64, 8, "sigmoid", **ADAM), only("vanishing", 1e-3, w(0.5), w(1), w(2))),
        Bench(net(32, 6, "sigmoid", IRIS), only("vanishing", 0.05, w(0.7), w(1), w(1.5))),
    ),
    (
        Bench(net(64, 3, "sigmoid", **ADAM, **BATCH), plain(2e-3)),
        Bench(net(48, 4, "sigmoid", **BATCH), plain(0.05)),
    ),
    (
        Bench(
            replace(DIGITS, hidden=(256, 128, 64, 32), initializer="he_normal", optimizer="sgd"),
            plain(0.1, 1, 0.7, 0.5, 1.5) + only("dead", 0.005, {"sigma_b": 4}, {"sigma_b": 5}),
        ),
        Bench(
            replace(DIGITS, hidden=(128, 64, 64, 32), initializer="he_uniform"),
            plain(0.02) + only("dead", 0.001, {"sigma_b": 4}, {"sigma_b": 5}, {"sigma_b": 6}),
        ),
    ),
    (
        Bench(net(100, 5, "tanh", initializer="glorot_uniform", optimizer="rmsprop"), plain(1e-3) + RATES),
        Bench(net(64, 4, "softsign", IRIS, initializer="lecun_normal", **ADAM), plain(3e-3) + RATES),
    ),
    (
        Bench(net(64, 6, "leaky_relu", IRIS, initializer="orthogonal(1.414)", optimizer="nesterov"), plain(0.02)),
        Bench(net(48, 5, "elu", initializer="glorot_normal"), plain(0.01)),
    ),
    (
        Bench(net(64, 8, "tanh", branch="residual"), plain(0.01, sigma_w=0.5)),
        Bench(net(64, 16, "relu", branch="rezero", initializer="he_normal", **ADAM), plain(2e-3)),
    ),
    (
        Bench(net(64, 3, "relu", **BATCH), plain(0.05)),
        Bench(net(48, 4, "tanh", norm_at="layer_inputs", **BATCH, **ADAM), plain(2e-3)),
    ),
    (
        Bench(net(64, 6, "relu", initializer="he_normal", **LAYER), plain(0.02)),
        Bench(net(48, 5, "gelu", IRIS, initializer="he_normal", **LAYER, **ADAM), plain(2e-3)),
    ),
    (
        Bench(net(64, 3, "tanh", **RAW), only("saturated", 0.001, w(1), w(2), w(1, rate=3))),
        Bench(net(48, 2, "sigmoid", **RAW), only("saturated", 0.001, w(1), w(3), w(2, rate=3))),
    ),
    (
        Bench(
            net(64, 3, "tanh", IRIS),
            lanes(0.02, saturated=[w(1, sigma_b=6), w(1, sigma_b=10), w(150)], healthy=[w(1), w(1.3, rate=0.5)]),
        ),
        Bench(
            net(96, 3, "softsign", IRIS),
            lanes(0.02, saturated=[w(1, sigma_b=9), w(1, sigma_b=12), w(300)], healthy=[w(1), w(1.5, rate=0.5)]),
        ),
    ),
    (
        Bench(
            net(32, 3, "tanh", IRIS, initializer=f"{OWN}equal"), only("constant", 0.02, w(1), w(0.3), w(2, rate=0.5))
        ),
        Bench(
            net(48, 5, "relu", initializer=f"{OWN}equal", **CLIPPED),
            only("constant", 0.005, w(1), w(0.3), w(2, rate=0.5)),
        ),
    ),
    (
        Bench(net(64, 4, "relu", initializer=f"{OWN}zeros"), only("constant", 0.02, {}, {"rate": 3}, {"rate": 0.3})),
        Bench(
            net(32, 2, "sigmoid", PETAL, initializer=f"{OWN}zeros"),
            only("constant", 0.05, {}, {"rate": 2}, w(1, rate=0.2)),
        ),
    ),
    (
        Bench(net(64, 4, "relu", initializer=f"{OWN}negative"), only("dead", 0.02, w(1), w(0.5), w(0.2))),
        Bench(net(96, 3, "relu", PETAL, initializer=f"{OWN}negative"), only("dead", 0.01, w(1), w(0.5), w(0.3))),
    ),
    (
        Bench(
            net(64, 4, "tanh", clip="value"),
            lanes(
                0.01,
                clipping=[
                    w(1, rate=300, clip_threshold=1e-5),
                    w(1, rate=30, clip_threshold=1e-4),
                    w(1.2, rate=20, clip_threshold=1e-4),
                ],
                healthy=[w(1, **NO_CLIP), w(1.2, rate=0.5, **NO_CLIP)],
            ),
        ),
        Bench(
            net(64, 5, "relu", clip="value", optimizer="sgd"),
            lanes(
                0.1,
                clipping=[
                    w(2, rate=100, clip_threshold=1e-4),
                    w(2, rate=50, clip_threshold=2e-4),
                    w(2.2, rate=1000, clip_threshold=1e-5),
                ],
                healthy=[w(2, **NO_CLIP), w(2, rate=0.5, **NO_CLIP)],
            ),
        ),
    ),
    (
        Bench(
            net(32, 3, "elu", PETAL, clip="value"),
            lanes(
                0.02,
                clipping=[
                    w(1.4, rate=100, clip_threshold=1e-4),
                    w(1.4, rate=20, clip_threshold=5e-4),
                    w(1.2, rate=10, clip_threshold=1e-3),
                ],
                healthy=[w(1.4, **NO_CLIP), w(1.4, rate=0.5, **NO_CLIP)],
            ),
        ),
        Bench(
            net(48, 4, "swish", IRIS, clip="value"),
            lanes(
                0.02,
                clipping=[
                    w(2.3, rate=100, clip_threshold=1e-4),
                    w(2.3, rate=20, clip_threshold=5e-4),
                    w(2, rate=10, clip_threshold=1e-3),
                ],
                healthy=[w(2.3, **NO_CLIP), w(2.3, rate=0.5, **NO_CLIP)],
            ),
        ),
    ),
    (
        Bench(net(32, 30, "relu", **BATCH), only("batch_norm", 0.002, w(2), w(1, rate=0.5), w(2, rate=0.2))),
        Bench(
            net(64, 32, "relu", batch_size=100, **BATCH),
            only("batch_norm", 0.002, w(2), w(1, rate=0.5), w(2, rate=0.2)),
        ),
    ),
    (
        Bench(
            net(48, 36, "leaky_relu", **BATCH, **ADAM), only("batch_norm", 5e-4, w(2), w(1, rate=0.5), w(2, rate=0.2))
        ),
        Bench(net(32, 46, "gelu", **BATCH, **ADAM), only("batch_norm", 5e-4, w(2), w(1, rate=0.5), w(2, rate=0.2))),
    ),
    (
        Bench(
            net(64, 4, "tanh", output_initializer="normal(1e-7)", **ADAM),
            only("underflow", 2e-3, w(1), w(1.2, rate=0.5), w(1.3, rate=0.7)),
        ),
        Bench(
            net(48, 6, "relu", output_initializer="normal(3e-8)", **ADAM),
            only("underflow", 2e-3, w(2), w(2, rate=0.5), w(2.2, rate=0.7)),
        ),
    ),
    (
        Bench(
            net(96, 5, "gelu", output_initializer="normal(1e-8)"),
            only("underflow", 0.02, w(2), w(2, rate=0.7), w(2.2, rate=0.7)),
        ),
        Bench(
            net(32, 4, "elu", IRIS, output_initializer="normal(1e-8)"),
            only("underflow", 0.02, w(1.4), w(1.4, rate=0.7), w(1.5, rate=0.7)),
        ),
    ),
    (
        Bench(
            net(64, 8, "relu", optimizer="sgd"),
            only("nan", 0.05, *(w(2, rate=r) for r in (1e9, 1e11, 1e13)), *({"sigma_w": s} for s in (2e5, 1e6, 1e7))),
        ),
        Bench(
            net(48, 7, "elu", IRIS),
            only(
                "nan", 0.02, *(w(1.4, rate=r) for r in (1e11, 1e13, 1e15)), *({"sigma_w": s} for s in (1e6, 3e6, 1e8))
            ),
        ),
    ),
)
BENCHES = tuple(bench for pair in PAIRS for bench in pair)  # even: building, odd: trial
