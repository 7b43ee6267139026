"""The runs of the calibration: networks with a fault built in, and healthy ones, each labelled by how it was set up.

A bench is one network on one data set; its lanes are the runs. The rules were built on the benches with an even number
and tried on those with an odd number.
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
    """W = −|N(0, 2/fan_in)|."""
    return -jnp.abs(jax.random.normal(key, shape, dtype)) * jnp.sqrt(2.0 / shape[0]).astype(dtype)


Lane = tuple[str, Hypers]


@dataclass(frozen=True)
class Bench:
    """One network on one data set, and its labelled lanes."""

    config: Config
    lanes: tuple[Lane, ...]


def lanes(rate: float, **labelled: Any) -> tuple[Lane, ...]:
    """Lanes for each label, from dicts of fields that replace those of Hypers(learning_rate=rate).

    `rate` in a dict multiplies the learning rate.
    """
    found = []
    for label, changes in labelled.items():
        for change in changes if isinstance(changes, list) else [changes]:
            fields = dict(change)
            found.append((label, Hypers(learning_rate=rate * fields.pop("rate", 1.0), **fields)))
    return tuple(found)


def sigma_w2(variance: float, **fields: Any) -> dict[str, Any]:
    """The fields of a lane with this σ_w², and further fields."""
    return {"sigma_w": variance**0.5, **fields}


BASE = Config(dataset="digits", initializer="mean_field", batch_size=50, epochs=8, optimizer="momentum")
DIGITS = BASE
IRIS = replace(BASE, dataset="iris", scaling="standardised", batch_size=25, epochs=30)
PETAL = replace(IRIS, dataset="iris_petal")
ADAM: dict[str, Any] = {"optimizer": "adam"}
CLIPPED: dict[str, Any] = {"clip": "global_norm"}


def network(width: int, depth: int, activation: str, base: Config = DIGITS, **fields: Any) -> Config:
    """A config with `depth` hidden layers of one width."""
    return replace(base, hidden=(width,) * depth, activation=activation, **fields)


def phases(rate: float, critical: float, ordered: list[float], chaotic: list[float], **more: Any) -> tuple[Lane, ...]:
    """Healthy lanes near the critical σ_w², ordered and chaotic lanes, and lanes with a wrong learning rate."""
    healthy = [
        sigma_w2(critical),
        sigma_w2(critical, rate=0.5),
        sigma_w2(0.95 * critical),
        sigma_w2(1.1 * critical, rate=0.7),
    ]
    return lanes(
        rate,
        healthy=healthy,
        vanishing=[sigma_w2(x) for x in ordered],
        exploding=[sigma_w2(x) for x in chaotic],
        learning_rate_high=[sigma_w2(critical, rate=1000), sigma_w2(critical, rate=3000)],
        learning_rate_low=[sigma_w2(critical, rate=1e-4), sigma_w2(critical, rate=3e-5)],
        **more,
    )


def healthy_lanes(rate: float, *scales: float, **fields: Any) -> tuple[Lane, ...]:
    """Healthy lanes that differ in their learning rate."""
    return lanes(rate, healthy=[{"rate": scale, **fields} for scale in scales or (1.0, 0.7, 0.5, 1.2)])


def lanes_of(label: str, rate: float, *changes: dict[str, Any]) -> tuple[Lane, ...]:
    """Lanes of one label."""
    return lanes(rate, **{label: list(changes)})


WRONG_RATES = lanes(1e-3, learning_rate_high={"rate": 2000}, learning_rate_low={"rate": 1e-4})
MODULE = "experiments.benches:"
RAW: dict[str, Any] = {"scaling": "none"}
BATCH: dict[str, Any] = {"norm": "batch"}
LAYER: dict[str, Any] = {"norm": "layer"}
NO_CLIP: dict[str, Any] = {"clip_threshold": 100.0}

# Each pair: a bench on which the rules were built, and its counterpart on which they were tried.
PAIRS: tuple[tuple[Bench, Bench], ...] = (
    (
        Bench(network(64, 20, "tanh"), phases(0.01, 1.1, [0.35, 0.5], [9, 14])),
        Bench(network(48, 24, "erf"), phases(0.01, 0.85, [0.3, 0.4], [8, 10])),
    ),
    (
        Bench(
            network(64, 10, "relu", **ADAM, **CLIPPED),
            phases(
                1e-3,
                2.0,
                [0.4, 0.6],
                [10, 14],
                dead=[sigma_w2(2, sigma_b=3), sigma_w2(2, sigma_b=4), sigma_w2(1.8, sigma_b=6)],
            ),
        ),
        Bench(network(96, 8, "leaky_relu(0.1)", **CLIPPED), phases(0.02, 2.0, [0.2, 0.4], [14, 18])),
    ),
    (
        Bench(network(64, 12, "gelu", IRIS, **ADAM, **CLIPPED), phases(1e-3, 2.0, [0.5, 0.8], [12, 16])),
        Bench(network(80, 10, "swish", **CLIPPED), phases(0.02, 2.3, [0.6, 0.9], [16, 20])),
    ),
    (
        Bench(network(32, 16, "elu", IRIS, **CLIPPED), phases(0.02, 1.4, [0.35, 0.45], [7, 9])),
        Bench(network(48, 18, "selu", **ADAM, **CLIPPED), phases(5e-4, 0.85, [0.12, 0.18], [4, 6])),
    ),
    (
        Bench(network(64, 8, "sigmoid", **ADAM), lanes_of("vanishing", 1e-3, sigma_w2(0.5), sigma_w2(1), sigma_w2(2))),
        Bench(network(32, 6, "sigmoid", IRIS), lanes_of("vanishing", 0.05, sigma_w2(0.7), sigma_w2(1), sigma_w2(1.5))),
    ),
    (
        Bench(network(64, 3, "sigmoid", **ADAM, **BATCH), healthy_lanes(2e-3)),
        Bench(network(48, 4, "sigmoid", **BATCH), healthy_lanes(0.05)),
    ),
    (
        Bench(
            replace(DIGITS, hidden=(256, 128, 64, 32), initializer="he_normal", optimizer="sgd"),
            healthy_lanes(0.1, 1, 0.7, 0.5, 1.5) + lanes_of("dead", 0.005, {"sigma_b": 4}, {"sigma_b": 5}),
        ),
        Bench(
            replace(DIGITS, hidden=(128, 64, 64, 32), initializer="he_uniform"),
            healthy_lanes(0.02) + lanes_of("dead", 0.001, {"sigma_b": 4}, {"sigma_b": 5}, {"sigma_b": 6}),
        ),
    ),
    (
        Bench(
            network(100, 5, "tanh", initializer="glorot_uniform", optimizer="rmsprop"),
            healthy_lanes(1e-3) + WRONG_RATES,
        ),
        Bench(network(64, 4, "softsign", IRIS, initializer="lecun_normal", **ADAM), healthy_lanes(3e-3) + WRONG_RATES),
    ),
    (
        Bench(
            network(64, 6, "leaky_relu", IRIS, initializer="orthogonal(1.414)", optimizer="nesterov"),
            healthy_lanes(0.02),
        ),
        Bench(network(48, 5, "elu", initializer="glorot_normal"), healthy_lanes(0.01)),
    ),
    (
        Bench(network(64, 8, "tanh", branch="residual"), healthy_lanes(0.01, sigma_w=0.5)),
        Bench(network(64, 16, "relu", branch="rezero", initializer="he_normal", **ADAM), healthy_lanes(2e-3)),
    ),
    (
        Bench(network(64, 3, "relu", **BATCH), healthy_lanes(0.05)),
        Bench(network(48, 4, "tanh", norm_at="layer_inputs", **BATCH, **ADAM), healthy_lanes(2e-3)),
    ),
    (
        Bench(network(64, 6, "relu", initializer="he_normal", **LAYER), healthy_lanes(0.02)),
        Bench(network(48, 5, "gelu", IRIS, initializer="he_normal", **LAYER, **ADAM), healthy_lanes(2e-3)),
    ),
    (
        Bench(
            network(64, 3, "tanh", **RAW), lanes_of("saturated", 0.001, sigma_w2(1), sigma_w2(2), sigma_w2(1, rate=3))
        ),
        Bench(
            network(48, 2, "sigmoid", **RAW),
            lanes_of("saturated", 0.001, sigma_w2(1), sigma_w2(3), sigma_w2(2, rate=3)),
        ),
    ),
    (
        Bench(
            network(64, 3, "tanh", IRIS),
            lanes(
                0.02,
                saturated=[sigma_w2(1, sigma_b=6), sigma_w2(1, sigma_b=10), sigma_w2(150)],
                healthy=[sigma_w2(1), sigma_w2(1.3, rate=0.5)],
            ),
        ),
        Bench(
            network(96, 3, "softsign", IRIS),
            lanes(
                0.02,
                saturated=[sigma_w2(1, sigma_b=9), sigma_w2(1, sigma_b=12), sigma_w2(300)],
                healthy=[sigma_w2(1), sigma_w2(1.5, rate=0.5)],
            ),
        ),
    ),
    (
        Bench(
            network(32, 3, "tanh", IRIS, initializer=f"{MODULE}equal"),
            lanes_of("constant", 0.02, sigma_w2(1), sigma_w2(0.3), sigma_w2(2, rate=0.5)),
        ),
        Bench(
            network(48, 5, "relu", initializer=f"{MODULE}equal", **CLIPPED),
            lanes_of("constant", 0.005, sigma_w2(1), sigma_w2(0.3), sigma_w2(2, rate=0.5)),
        ),
    ),
    (
        Bench(
            network(64, 4, "relu", initializer=f"{MODULE}zeros"),
            lanes_of("constant", 0.02, {}, {"rate": 3}, {"rate": 0.3}),
        ),
        Bench(
            network(32, 2, "sigmoid", PETAL, initializer=f"{MODULE}zeros"),
            lanes_of("constant", 0.05, {}, {"rate": 2}, sigma_w2(1, rate=0.2)),
        ),
    ),
    (
        Bench(
            network(64, 4, "relu", initializer=f"{MODULE}negative"),
            lanes_of("dead", 0.02, sigma_w2(1), sigma_w2(0.5), sigma_w2(0.2)),
        ),
        Bench(
            network(96, 3, "relu", PETAL, initializer=f"{MODULE}negative"),
            lanes_of("dead", 0.01, sigma_w2(1), sigma_w2(0.5), sigma_w2(0.3)),
        ),
    ),
    (
        Bench(
            network(64, 4, "tanh", clip="value"),
            lanes(
                0.01,
                clipping=[
                    sigma_w2(1, rate=300, clip_threshold=1e-5),
                    sigma_w2(1, rate=30, clip_threshold=1e-4),
                    sigma_w2(1.2, rate=20, clip_threshold=1e-4),
                ],
                healthy=[sigma_w2(1, **NO_CLIP), sigma_w2(1.2, rate=0.5, **NO_CLIP)],
            ),
        ),
        Bench(
            network(64, 5, "relu", clip="value", optimizer="sgd"),
            lanes(
                0.1,
                clipping=[
                    sigma_w2(2, rate=100, clip_threshold=1e-4),
                    sigma_w2(2, rate=50, clip_threshold=2e-4),
                    sigma_w2(2.2, rate=1000, clip_threshold=1e-5),
                ],
                healthy=[sigma_w2(2, **NO_CLIP), sigma_w2(2, rate=0.5, **NO_CLIP)],
            ),
        ),
    ),
    (
        Bench(
            network(32, 3, "elu", PETAL, clip="value"),
            lanes(
                0.02,
                clipping=[
                    sigma_w2(1.4, rate=100, clip_threshold=1e-4),
                    sigma_w2(1.4, rate=20, clip_threshold=5e-4),
                    sigma_w2(1.2, rate=10, clip_threshold=1e-3),
                ],
                healthy=[sigma_w2(1.4, **NO_CLIP), sigma_w2(1.4, rate=0.5, **NO_CLIP)],
            ),
        ),
        Bench(
            network(48, 4, "swish", IRIS, clip="value"),
            lanes(
                0.02,
                clipping=[
                    sigma_w2(2.3, rate=100, clip_threshold=1e-4),
                    sigma_w2(2.3, rate=20, clip_threshold=5e-4),
                    sigma_w2(2, rate=10, clip_threshold=1e-3),
                ],
                healthy=[sigma_w2(2.3, **NO_CLIP), sigma_w2(2.3, rate=0.5, **NO_CLIP)],
            ),
        ),
    ),
    (
        Bench(
            network(32, 30, "relu", **BATCH),
            lanes_of("batch_norm", 0.002, sigma_w2(2), sigma_w2(1, rate=0.5), sigma_w2(2, rate=0.2)),
        ),
        Bench(
            network(64, 32, "relu", batch_size=100, **BATCH),
            lanes_of("batch_norm", 0.002, sigma_w2(2), sigma_w2(1, rate=0.5), sigma_w2(2, rate=0.2)),
        ),
    ),
    (
        Bench(
            network(48, 36, "leaky_relu", **BATCH, **ADAM),
            lanes_of("batch_norm", 5e-4, sigma_w2(2), sigma_w2(1, rate=0.5), sigma_w2(2, rate=0.2)),
        ),
        Bench(
            network(32, 46, "gelu", **BATCH, **ADAM),
            lanes_of("batch_norm", 5e-4, sigma_w2(2), sigma_w2(1, rate=0.5), sigma_w2(2, rate=0.2)),
        ),
    ),
    (
        Bench(
            network(64, 4, "tanh", output_initializer="normal(1e-7)", **ADAM),
            lanes_of("underflow", 2e-3, sigma_w2(1), sigma_w2(1.2, rate=0.5), sigma_w2(1.3, rate=0.7)),
        ),
        Bench(
            network(48, 6, "relu", output_initializer="normal(3e-8)", **ADAM),
            lanes_of("underflow", 2e-3, sigma_w2(2), sigma_w2(2, rate=0.5), sigma_w2(2.2, rate=0.7)),
        ),
    ),
    (
        Bench(
            network(96, 5, "gelu", output_initializer="normal(1e-8)"),
            lanes_of("underflow", 0.02, sigma_w2(2), sigma_w2(2, rate=0.7), sigma_w2(2.2, rate=0.7)),
        ),
        Bench(
            network(32, 4, "elu", IRIS, output_initializer="normal(1e-8)"),
            lanes_of("underflow", 0.02, sigma_w2(1.4), sigma_w2(1.4, rate=0.7), sigma_w2(1.5, rate=0.7)),
        ),
    ),
    (
        Bench(
            network(64, 8, "relu", optimizer="sgd"),
            lanes_of(
                "nan",
                0.05,
                *(sigma_w2(2, rate=r) for r in (1e9, 1e11, 1e13)),
                *({"sigma_w": s} for s in (2e5, 1e6, 1e7)),
            ),
        ),
        Bench(
            network(48, 7, "elu", IRIS),
            lanes_of(
                "nan",
                0.02,
                *(sigma_w2(1.4, rate=r) for r in (1e11, 1e13, 1e15)),
                *({"sigma_w": s} for s in (1e6, 3e6, 1e8)),
            ),
        ),
    ),
)
BENCHES = tuple(bench for pair in PAIRS for bench in pair)  # even index: building; odd index: trial
