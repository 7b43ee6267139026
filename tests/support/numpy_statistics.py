"""Statistics of gradients computed in float64 by NumPy, independently of the package."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from vgjax.statistics import histograms


def numpy_counts(x):
    """The histogram by NumPy's frexp, which knows subnormals, infinities and NaN without looking at bits."""
    counts = np.zeros(histograms.N_BINS, np.int64)
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = x.astype(np.float64)
    counts[histograms.NAN_BIN] = np.isnan(wide).sum()
    counts[histograms.ZERO_BIN] = (wide == 0).sum()
    for sign, side in ((1, wide > 0), (-1, wide < 0)):
        size = np.abs(wide[side])
        counts[256 + sign * 256] += np.isinf(size).sum()
        size = size[np.isfinite(size)]
        exponent = np.frexp(size)[1] - 1  # 2^exponent ≤ size < 2^(exponent + 1)
        biased = np.maximum(exponent + 127, 0)
        np.add.at(counts, 256 + sign * (1 + biased), 1)
    return counts


TINY = np.finfo(np.float32).smallest_normal  # below it a CPU flushes to zero


def expected(g):
    """Every gradient statistic in float64."""
    g = g.astype(np.float64)
    with np.errstate(all="ignore"):
        rms = np.sqrt(np.mean(g**2))
        return {
            "gradient_norm": np.linalg.norm(g),
            "gradient_rms": rms,
            "gradient_log10_rms": np.log10(rms),
            "gradient_mean": g.mean(),
            "gradient_std": g.std(),
            "gradient_max": np.abs(g).max(),
            "gradient_zero_fraction": np.mean(g == 0),
            "gradient_float16_underflow": np.mean((g != 0) & (g.astype(np.float16) == 0)) / np.mean(g != 0),
            "gradient_bfloat16_underflow": np.mean((g != 0) & (np.abs(g) <= 2.0**-134)) / np.mean(g != 0),
        }


def from_bits(bits):
    return np.asarray(bits, np.uint32).view(np.float32)


def tree_of(x):
    return {"layer_1": {"kernel": jnp.asarray(x)}}


SIZES = [1e-30, 1.0, 1e30]
