"""Which examples a step sees: order, held-out examples, scaling."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from vgjax.data import batches
from vgjax.data.catalogue import Dataset


@pytest.mark.parametrize("shuffle", ["never", "once", "every_epoch"])
def test_shuffle(shuffle):
    """Every order is a permutation: the file's, one for all epochs, or one for each; another key, another order."""
    config = dataclasses.replace(small.CONFIG, shuffle=shuffle, batch_size=7)
    orders = np.array([batches.epoch_order(config, small.N, jax.random.key(0), jnp.int32(e)) for e in range(3)])
    other = np.asarray(batches.epoch_order(config, small.N, jax.random.key(1), jnp.int32(0)))
    assert (np.sort(orders, axis=1) == np.arange(small.N)).all()
    assert np.array_equal(orders[0], np.arange(small.N)) == (shuffle == "never")
    assert np.array_equal(orders[0], orders[1]) == (shuffle != "every_epoch")
    assert np.array_equal(orders[0], other) == (shuffle == "never")
    assert not np.array_equal(orders[1], orders[2]) or shuffle != "every_epoch"


def test_holdout():
    """The first examples validate instead of the test split, and do not train."""
    data = small.dataset()
    train, validation = batches.arrays(data, dataclasses.replace(small.CONFIG, holdout=10))
    np.testing.assert_array_equal(validation.inputs, data.train_inputs[:10])
    np.testing.assert_array_equal(train.inputs, data.train_inputs[10:])
    np.testing.assert_array_equal(train.labels, data.train_labels[10:])
    train, validation = batches.arrays(data, small.CONFIG)
    np.testing.assert_array_equal(validation.inputs, data.test_inputs)
    assert len(train.labels) == small.N


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holdout": 56}, "holdout 56 leaves nothing of 56"),
        ({"batch_size": 57}, "batch_size 57 is more than the 56 training examples; allowed: 1 to 56"),
        ({"batch_size": 28, "replicas": 4}, "batch_size 28 is more than the 20 validation examples"),
        ({"scaling": "1/255"}, "scaling '1/255' is for bytes"),
    ],
)
def test_data_that_do_not_fit(changes, message):
    """One line that says what would."""
    with pytest.raises(ValueError, match=message):
        batches.arrays(small.dataset(), dataclasses.replace(small.CONFIG, **changes))


@pytest.mark.parametrize(
    ("scaling", "formula"),
    [
        ("auto", lambda x: x / 255),
        ("1/255", lambda x: x / 255),
        ("1/256", lambda x: x / 256),
        ("none", lambda x: x),
        ("standardised", lambda x: (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)),
    ],
)
def test_scaling_of_bytes(scaling, formula):
    """Bytes stay bytes until they are read; a constant feature becomes 0 and not NaN."""
    pixels = np.random.default_rng(0).integers(256, size=(40, 6)).astype(np.uint8)
    pixels[:, 2] = 7
    labels = np.zeros(40, np.int32)
    data = Dataset("bytes", pixels, labels, pixels[:5], labels[:5], 2, (6,), "drawn")
    train, validation = batches.arrays(data, dataclasses.replace(small.CONFIG, scaling=scaling))
    assert train.inputs.dtype == np.uint8
    want = formula(pixels.astype(np.float64))
    np.testing.assert_allclose(batches.scaled(train, train.inputs), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batches.scaled(validation, validation.inputs), want[:5], rtol=1e-5, atol=1e-5)
