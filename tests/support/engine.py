"""The parts of the engine for the tests: small runs, one lane's pieces, how two histories are compared."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import small

from vgjax.config import Hypers
from vgjax.data import batches
from vgjax.training import parallel
from vgjax.training.step import Lane, Program, Shared, purpose_key

ALONE = parallel.Layout(1, "lanes")


SETTINGS = [Hypers(0.1), Hypers(0.05)]


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: COMPILED.append(name) if name.endswith("backend_compile_duration") else None
)


def changed(**changes):
    return dataclasses.replace(small.CONFIG, **changes)


def assert_same_history(one, other, rtol=1e-5):
    """Every recorded number, relatively; counts may differ by numbers that rounding moved over a bin's edge."""
    assert set(one.data_vars) == set(other.data_vars)
    for name in one.data_vars:
        a, b = one[name].values, other[name].values
        if a.dtype.kind in "UO":
            assert a.tolist() == b.tolist(), name
        elif "bin" in one[name].dims:
            assert np.abs(a - b).sum() <= 4, name
        else:
            size = np.abs(a).max() if name == "gradient_mean" else 0  # a sum that cancels
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * size, err_msg=name)


def pieces(config, data=None, key=0):
    """The parts from which the engine is made, for one lane on one device."""
    train, validation = batches.arrays(data or small.dataset(), config)
    program = Program(config, small.CLASSES, len(train.labels), ALONE)
    return program, Shared(train, validation, None), Lane(Hypers(), jax.random.key(key), jnp.int32(0))


def batch_of(program, shared, lane, t, replica=0, epoch=0):
    order = batches.epoch_order(program.config, program.n_examples, purpose_key(lane.key, "shuffle"), jnp.int32(epoch))
    return batches.batch_at(program.config, shared.train, order, jnp.int32(t), jnp.int32(replica), jnp.int32(0), 1)
