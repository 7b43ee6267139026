"""A small data set and a small run, shared by the tests of the engine, so that they share its compiled programs."""

from __future__ import annotations

import numpy as np

from vgjax.config import Config
from vgjax.data.catalogue import Dataset

N, BATCH, FEATURES, CLASSES = 56, 16, 5, 3


def dataset() -> Dataset:
    """Three noisy clusters; the first feature of a training example is its number, from 0 to 1."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=N + 20).astype(np.int32)
    inputs = (rng.normal(size=(N + 20, FEATURES)) + labels[:, None]).astype(np.float32)
    inputs[:N, 0] = np.arange(N) / N
    return Dataset(
        "small", inputs[:N], labels[:N], inputs[N:], labels[N:], CLASSES, (FEATURES,), "drawn by tests/support/small.py"
    )


CONFIG = Config(
    dataset="small",
    hidden=(8, 6),
    activation="tanh",
    initializer="uniform(0.4)",
    optimizer="momentum",
    batch_size=BATCH,
    epochs=3,
    cadence="every(3)",
    record=("norms", "spread", "weights", "gradient_histogram"),  # few families, as a test compiles what it records
)


def identical(one, other):
    """Whether two histories are the same in everything but when and with what they were made."""
    return one.assign_attrs(environment="").identical(other.assign_attrs(environment=""))
