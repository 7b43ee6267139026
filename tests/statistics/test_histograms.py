"""Histograms by octave are exact, of every kind of float32, bfloat16 and float16, few and many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_statistics import TINY, from_bits, numpy_counts

from vgjax.network.layer_names import weight_groups
from vgjax.statistics import histograms

pytestmark = pytest.mark.optimised


@pytest.fixture(scope="module")
def any_floats():
    """A million float32 numbers with random bits, and every special one."""
    bits = np.random.default_rng(3).integers(0, 2**32, 10**6, dtype=np.uint32)
    subnormal = np.arange(1, 1000, dtype=np.uint32)
    special = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0x00800000, 0x7F7FFFFF]
    bits = np.concatenate([bits, subnormal, subnormal | 0x80000000, np.array(special, np.uint32)])
    return bits, from_bits(bits)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_histogram_of_every_small_float(kind):
    """All 65,536 bit patterns, subnormals included, fall where their value does in float32."""
    bits = np.arange(2**16, dtype=np.uint16)
    x = bits.view(jnp.dtype(kind))
    have = np.asarray(jax.jit(histograms.log2_histogram)(jnp.asarray(x)))
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
    keep = np.ones(len(x), bool)
    np.testing.assert_array_equal(have, numpy_counts(wide[keep]))
    assert have.sum() == 2**16


def test_a_mask_leaves_rows_out():
    """Rows that do not count are in no bin, NaN among them included."""
    x = jnp.asarray([[1.0, 2.0], [0.0, -1.0], [jnp.nan, 8.0]])
    have = np.asarray(histograms.log2_histogram(x, jnp.asarray([True, True, False])))
    np.testing.assert_array_equal(have, numpy_counts(np.array([1.0, 2.0, 0.0, -1.0])))


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="int32 are not allowed; allowed: float32"):
        histograms.log2_histogram(jnp.ones(3, jnp.int32))


def test_histogram_is_exact(any_floats):
    """Counts of random-bit numbers are NumPy's, to the last one."""
    bits, x = any_floats
    on_device = jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.float32)
    have = np.asarray(jax.jit(histograms.log2_histogram)(on_device))
    want = numpy_counts(x)
    assert have.shape == (histograms.N_BINS,) and have.dtype == np.int32
    assert want[[0, 255, 256, 257, 512, 513]].all()
    np.testing.assert_array_equal(have, want)
    assert have.sum() == x.size


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize(
    "among", ["nothing else", "zeros", "the smallest", "the largest", "−∞", "NaN", "special numbers"]
)
def test_histogram_of_many_is_exact(size, among):
    """Of an odd number of numbers, and of an even one: all of like size, or some octaves away, there and at the end."""
    rng = np.random.default_rng(7)
    x = np.clip(rng.normal(size=histograms.FEWEST_IN_PAIRS + 1) * size, -3e38, 3e38).astype(np.float32)
    others = {
        "nothing else": x[-5:],
        "zeros": [0.0, -0.0],
        "the smallest": [TINY, -TINY],
        "the largest": [3e38, -3e38],
        "−∞": [-np.inf],
        "NaN": [np.nan],
        "special numbers": [np.inf, -np.inf, np.nan, from_bits(0x00000001), from_bits(0x807FFFFF)],
    }
    x[rng.integers(0, x.size, 99)] = rng.choice(np.array(others[among], np.float32), 99)
    x[-1] = others[among][-1]
    bits = jax.lax.bitcast_convert_type(jnp.asarray(x.view(np.uint32)), jnp.float32)
    for first in (0, 1):
        have = np.asarray(jax.jit(histograms.log2_histogram)(bits[first:]))
        np.testing.assert_array_equal(have, numpy_counts(x[first:]))
        assert have.sum() == x.size - first


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_many_of_like_size_are_counted_in_pairs(size, monkeypatch):
    """And not once more, one by one, which takes longer and comes to the same."""
    monkeypatch.setattr(histograms, "_one_by_one", lambda x: jnp.full(histograms.N_BINS, -1))
    x = (np.random.default_rng(9).normal(size=histograms.FEWEST_IN_PAIRS) * size).astype(np.float32)
    x[::9] = 0
    np.testing.assert_array_equal(histograms._by_pairs(jnp.asarray(x)), numpy_counts(x))


@pytest.mark.slow
def test_histograms_with_64_bits():
    """Of few and of many numbers, counts are int32."""
    with jax.enable_x64(True):
        for n in (1600, histograms.FEWEST_IN_PAIRS + 1):
            x = jnp.ones(n, jnp.float32)
            for counts in (histograms.log2_histogram(x), jax.jit(histograms.log2_histogram)(x)):
                assert counts.dtype == jnp.int32 and counts[histograms.log2_bin(x[0])] == n


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_histogram_of_many_small_floats_is_exact(kind):
    """Also where each layer of a stack is counted by itself."""
    x = np.random.default_rng(8).normal(size=(2, 400, 260)).astype(jnp.dtype(kind))
    x[1] *= np.asarray(1e-3, x.dtype)
    tree = {"layers_2_to_3": {"kernel": jnp.asarray(x)}}
    have = np.asarray(jax.jit(lambda tree: histograms.histograms(weight_groups(tree)))(tree))
    for row, layer in zip(have, x, strict=True):
        np.testing.assert_array_equal(row, numpy_counts(layer.ravel()))


def test_magnitudes_put_both_signs_together():
    """Special values are left out, and 2^e ≤ |x| < 2^(e+1) in the octave of e."""
    x = np.array([1.0, -1.5, 3.0, 2.0**-126, -(2.0**127), 0, 1e-40, np.inf, -np.inf, np.nan], np.float32)
    counts, exponents = histograms.magnitude_counts(numpy_counts(x))
    assert {int(e): int(n) for e, n in zip(exponents, counts, strict=True) if n} == {-126: 1, 0: 2, 1: 1, 127: 1}


def test_edges_hold_their_numbers(any_floats):
    """Every finite number lies between the edges of the bin in which the histogram counts it."""
    _, x = any_floats
    left, right = histograms.bin_edges()
    assert left.shape == right.shape == (histograms.N_BINS,)
    assert (left[ok := ~np.isnan(left)] <= right[ok]).all() and (np.diff(left[:-1]) >= 0).all()
    assert np.array_equal(-left[:-1][::-1], right[:-1]) and np.isnan([left[-1], right[-1]]).all()
    some = x[np.isfinite(x)][-5000:]
    bins = np.argmax(jax.jit(jax.vmap(histograms.log2_histogram))(jnp.asarray(some)[:, None]), axis=1)
    value = some.astype(np.float64)
    positive = (left[bins] <= value) & (value < right[bins])
    negative = (left[bins] < value) & (value <= right[bins])
    assert np.where(value > 0, positive, np.where(value < 0, negative, bins == histograms.ZERO_BIN)).all()


def test_histograms_of_layers():
    """One row a layer, summing to its number of weights."""
    tree = {
        "layer_1": {"kernel": jnp.full((3, 4), -1.5), "bias": jnp.ones(4)},
        "layer_2": {"kernel": jnp.zeros((4, 2))},
    }
    rows = np.asarray(histograms.histograms(weight_groups(tree)))
    assert rows.sum(1).tolist() == [12, 8]
    assert rows[0, 256 - 1 - 127] == 12 and rows[1, histograms.ZERO_BIN] == 8
