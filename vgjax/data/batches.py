"""A data set on the device: it is shuffled there, and each step reads and scales its own batch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.config import Config
from vgjax.data.catalogue import Dataset


class Arrays(NamedTuple):
    """Examples on the device; the network sees (inputs − shift) · scale."""

    inputs: jax.Array  # [N, features], uint8 or float32
    labels: jax.Array  # [N] int32
    shift: jax.Array  # [features] or [1]
    scale: jax.Array  # [features] or [1]


class HostExamples(NamedTuple):
    """Training examples on the host; the network sees (inputs − shift) · scale."""

    inputs: np.ndarray  # [N, features], uint8 or float32
    labels: np.ndarray  # [N] int32
    shift: np.ndarray  # [features] or [1] float32
    scale: np.ndarray  # [features] or [1] float32

    def scaled(self, rows: np.ndarray | slice) -> np.ndarray:
        """Chosen examples as the network sees them, [rows, features] float64."""
        return (self.inputs[rows].astype(np.float64) - self.shift) * self.scale


class Batch(NamedTuple):
    """One lane's share of one step."""

    inputs: jax.Array  # [B, features] float32, scaled
    labels: jax.Array  # [B] int32
    mask: jax.Array | None  # [B] bool, or None where every example counts


def arrays(dataset: Dataset, config: Config) -> tuple[Arrays, Arrays]:
    """Training and validation examples as the config wants them.

    Args:
      dataset: the whole data set, on the host.
      config: scaling, holdout, batch_size, replicas.

    Raises:
      ValueError: the holdout or a batch is larger than the data, or bytes scaling of floats.
    """
    train = host_examples(dataset, config)
    validation = (dataset.test_inputs, dataset.test_labels)
    if config.holdout:
        validation = (dataset.train_inputs[: config.holdout], dataset.train_labels[: config.holdout])
    if config.replicas > 1:  # each replica scores its own part of every batch, and the rest is dropped
        usable = len(validation[1]) - len(validation[1]) % config.batch_size
        validation = (validation[0][:usable], validation[1][:usable])

    def place(x: np.ndarray, y: np.ndarray) -> Arrays:
        return Arrays(*map(jnp.asarray, (x, y, train.shift, train.scale)))

    return place(train.inputs, train.labels), place(*validation)


def host_examples(dataset: Dataset, config: Config) -> HostExamples:
    """The training examples as the config wants them, without the way to the device and back.

    Args:
      dataset: the whole data set, on the host.
      config: scaling, holdout, batch_size, replicas.

    Raises:
      ValueError: the holdout or a batch is larger than the data, or bytes scaling of floats.
    """
    check_sizes(dataset, config)
    inputs, labels = dataset.train_inputs[config.holdout :], dataset.train_labels[config.holdout :]
    return HostExamples(inputs, labels, *_scaling(inputs, config))


def check_sizes(dataset: Dataset, config: Config) -> None:
    """Refuse a holdout or a batch that is larger than the data.

    Raises:
      ValueError: one of them is.
    """
    n = len(dataset.train_labels) - config.holdout
    if n < 1:
        n = len(dataset.train_labels)
        raise ValueError(f"holdout {config.holdout} leaves nothing of {n} training examples; allowed: 0 to {n - 1}")
    if n < config.batch_size and config.last_batch == "drop":
        raise ValueError(f"batch_size {config.batch_size} is more than the {n} training examples; allowed: 1 to {n}")
    n_validation = config.holdout or len(dataset.test_labels)
    if config.replicas > 1 and n_validation < config.batch_size:
        problem = f"batch_size {config.batch_size} is more than the {n_validation} validation examples of the replicas"
        raise ValueError(f"{problem}; allowed: 1 to {n_validation}")


def _scaling(inputs: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    is_bytes = inputs.dtype == np.uint8
    how = config.scaling if config.scaling != "auto" else ("1/255" if is_bytes else "none")
    if how == "standardised":
        mean, std = inputs.mean(0, dtype=np.float64), inputs.std(0, dtype=np.float64)
        varies = std >= np.finfo(np.float32).tiny  # devices take smaller numbers for zeros
        return mean.astype(np.float32), (1 / np.where(varies, std, 1)).astype(np.float32)
    if how != "none" and not is_bytes:
        raise ValueError(f"scaling {how!r} is for bytes, and {config.dataset} has numbers; allowed: none, standardised")
    factor = {"none": 1.0, "1/255": 1 / 255, "1/256": 1 / 256}[how]
    return np.zeros(1, np.float32), np.full(1, factor, np.float32)


def scaled(data: Arrays, inputs: jax.Array) -> jax.Array:
    """Raw rows [B, features] as the network sees them, float32."""
    return (inputs.astype(jnp.float32) - data.shift[None, :]) * data.scale[None, :]


def steps_per_epoch(config: Config, n: int) -> int:
    """How many steps an epoch of n examples takes."""
    return n // config.batch_size if config.last_batch == "drop" else -(-n // config.batch_size)


def epoch_order(config: Config, n: int, key: jax.Array, epoch: jax.Array) -> jax.Array:
    """The order of the n examples in one epoch, int32 [steps · batch_size].

    An incomplete last batch that is kept is filled up with the first examples of the order; `batch_at` masks them.
    """
    if config.shuffle == "never":
        order = jnp.arange(n)
    else:
        shuffle_key = jax.random.fold_in(key, epoch if config.shuffle == "every_epoch" else 0)
        order = jax.random.permutation(shuffle_key, n)
    return jnp.resize(order, (steps_per_epoch(config, n) * config.batch_size,))


def batch_at(
    config: Config,
    data: Arrays,
    order: jax.Array,
    step_of_epoch: jax.Array,
    replica: jax.Array,
    device: jax.Array,
    n_devices: int,
) -> Batch:
    """The examples of one step that belong to one replica and one device.

    Args:
      config: batch_size, replicas, last_batch.
      data: training examples.
      order: this epoch's order [steps · batch_size].
      step_of_epoch: 0, 1, …
      replica: index of the replica; each has an equal part of the batch.
      device, n_devices: example i of that part goes to device i mod n_devices, so that an incomplete
        batch is shared evenly.
    """
    n = data.labels.shape[0]
    per_replica = config.batch_size // config.replicas
    start = step_of_epoch * config.batch_size + replica * per_replica
    rows = jax.lax.dynamic_slice(order, (start,), (per_replica,)).reshape(-1, n_devices)[:, device]
    mask = None
    if config.last_batch == "keep" and n % config.batch_size:
        mask = (start + jnp.arange(per_replica).reshape(-1, n_devices)[:, device]) < n
    return Batch(scaled(data, data.inputs[rows]), data.labels[rows], mask)


def batch_sizes(config: Config, n: int) -> tuple[int, ...]:
    """The numbers of examples that a step of one lane can have."""
    full, rest = config.batch_size // config.replicas, n % config.batch_size
    return (full, rest) if config.last_batch == "keep" and rest else (full,)
