"""Numbers from a history: means with intervals over seeds, ratios, magnitude histograms, comparison with theory."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy import stats as scipy_stats

from vgjax.config import Config, Hypers
from vgjax.data import batches
from vgjax.data.catalogue import Dataset
from vgjax.network.layer_names import layer_names
from vgjax.settings import run_of
from vgjax.statistics.histograms import magnitude_counts
from vgjax.theory import profiles
from vgjax.theory.ensemble import draw_networks

SIGNALS = {  # quantities that are both predicted and measured
    "activation_rms": "RMS of the activations",
    "delta_rms": "RMS of δ = ∂loss/∂z",
    "gradient_rms": "RMS of the weight gradient",
}


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def times(self, factor: float) -> Estimate:
        """The estimate of a positive multiple."""
        return Estimate(factor * self.value, factor * self.low, factor * self.high, self.n)


def estimate(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Mean and Student-t interval, 95 % by default, of independent values.

    The interval is NaN for a single value and for a mean that is not finite.

    >>> estimate(np.array([1.0, 2.0, 3.0])).value
    2.0
    """
    values = np.asarray(values, np.float64)
    mean, n = float(values.mean()), len(values)
    if n < 2 or not math.isfinite(mean):
        return Estimate(mean, float("nan"), float("nan"), n)
    half = float(scipy_stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def interval(values: xr.DataArray, along: str = "seed") -> xr.Dataset:
    """`estimate` along one dimension: mean, low and high of every other element."""
    n, mean = values.sizes[along], values.mean(along)
    with np.errstate(invalid="ignore"):  # the mean may be infinite
        half = scipy_stats.t.ppf(0.975, n - 1) * values.std(along, ddof=1) / np.sqrt(n) if n > 1 else np.nan
        return xr.Dataset({"mean": mean, "low": mean - half, "high": mean + half})


def geometric_estimate(values: np.ndarray) -> Estimate:
    """Geometric mean and interval: `estimate` of the logarithms. For gradients, which spread over many decades.

    Where a value is 0, the mean is 0 and the interval NaN.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.asarray(values, np.float64))
        mean = estimate(logs)
    return Estimate(float(np.exp(mean.value)), float(np.exp(mean.low)), float(np.exp(mean.high)), mean.n)


def share_estimate(values: np.ndarray) -> Estimate:
    """`estimate` of shares, such as accuracies; the interval is cut at 0 and at 1."""
    mean = estimate(values)
    return mean._replace(low=float(np.clip(mean.low, 0, 1)), high=float(np.clip(mean.high, 0, 1)))


def by_seed(values: xr.DataArray) -> xr.DataArray:
    """Average the lanes (replicas) of each seed: [lane, …] → [seed, …]. Only seeds are independent draws."""
    return values.groupby("seed").mean("lane")


def layer_ratio(history: xr.Dataset, record: int = 0, last_hidden: bool = True) -> xr.DataArray:
    """RMS of the first layer's weight gradient, divided by that of the last hidden layer's, for each lane.

    By default the output layer is left out: its gradient has passed no activation. NaN where both are 0.
    """
    rms = history["gradient_log10_rms"].isel(record=record).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return 10 ** (rms.isel(layer=0) - rms.isel(layer=-2 if last_hidden else -1))


def layer_spread(history: xr.Dataset, record: int = 0) -> xr.DataArray:
    """Standard deviation of log₁₀ RMS of the weight gradient over the hidden layers, for each lane [decades].

    NaN where the gradient of a layer is 0 or not finite.
    """
    logs = history["gradient_log10_rms"].isel(record=record, layer=slice(None, -1)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return logs.std("layer", skipna=False)


def magnitude_histogram(history: xr.Dataset, name: str) -> xr.DataArray:
    """Share of elements in each octave of magnitude, both signs together: [lane, record, layer, octave].

    Args:
      history: with histograms.
      name: "gradient_histogram" or "weight_histogram".

    Returns:
      Shares, coordinate `exponent`: 2^exponent ≤ |x| < 2^(exponent+1). Zeros, infinities and NaN are left out.
    """
    counts = history[name].values.astype(np.float64)
    by_octave, exponents = magnitude_counts(counts)
    shares = by_octave / counts.sum(-1, keepdims=True)
    dims = (*history[name].dims[:-1], "octave")
    return xr.DataArray(shares, dims=dims, coords={"exponent": ("octave", exponents)})


def prediction(
    config: Config, hypers: Hypers, dataset: Dataset, n_draws: int = 64, most_examples: int = 128
) -> xr.Dataset:
    """Predict the statistics at step 0 from random networks of these widths (see `ensemble.draw_networks`).

    Args:
      config: the network, its scaling, batch_size, replicas and reduction.
      hypers: σ_w and σ_b.
      dataset: what the batches are drawn from.
      n_draws: number of networks; each gets its own batch.
      most_examples: largest number of examples of a batch that the networks are given.

    Returns:
      activation_rms, delta_rms and gradient_rms, each [draw, layer]. Their spread over draws is the finite-width band.
    """
    train = batches.host_examples(dataset, config)
    n = len(train.labels)
    batch_size = min(config.batch_size // config.replicas, n)
    rng = np.random.default_rng(0)
    rows = np.stack([rng.choice(n, min(batch_size, most_examples), replace=False) for _ in range(n_draws)])
    draws = draw_networks(config, hypers, train.scaled(rows), train.labels[rows], dataset.classes, batch_size)
    names = layer_names(len(config.hidden) + 1)
    signals = ("activation_rms", "delta_rms", "gradient_rms")
    columns = {name: (("draw", "layer"), getattr(draws, name)) for name in signals}
    return xr.Dataset(columns, {"layer": names})


def infinite_width(config: Config, hypers: Hypers, dataset: Dataset) -> xr.Dataset:
    """σ_w² of every layer; for plain networks also q and χ₁ of an example of mean length, at infinite width.

    Returns:
      fan_in, fan_out, sigma_w2, q and chi1, [layer]. With norms or branches, q and chi1 are NaN.
    """
    train = batches.host_examples(dataset, config)
    widths = (train.inputs.shape[1], *config.hidden, dataset.classes)
    variances = profiles.layer_variances(widths, config.initializer, config.output_initializer or None, hypers.sigma_w)
    q = growth = np.full(len(variances), np.nan)
    if config.norm == "none" and config.branch == "plain":
        square = float(np.mean(np.square(train.scaled(slice(10_000)))))
        sigma_b = hypers.sigma_b if config.bias else 0.0
        q, growth = profiles.length_profile(square, config.activation, variances, sigma_b)
    columns = {"fan_in": widths[:-1], "fan_out": widths[1:], "sigma_w2": variances, "q": q, "chi1": growth}
    names = layer_names(len(widths) - 1)
    return xr.Dataset({name: ("layer", np.asarray(column)) for name, column in columns.items()}, {"layer": names})


def decay(rms: xr.DataArray) -> xr.DataArray:
    """Decades that δ loses per layer on its way back: the least-squares slope of log₁₀ RMS(δ_l) against l.

    In a wide network of equal widths it is −½ log₁₀ χ₁: positive where gradients vanish, negative where they explode.

    Args:
      rms: delta_rms, [..., layer], of a history or a prediction, all layers. The last one is left out: its δ comes
        from the loss alone.

    Returns:
      [...]; infinite or NaN in the cases that `decay_of_logs` names.
    """
    hidden = rms.astype(np.float64).isel(layer=slice(None, -1))
    with np.errstate(divide="ignore", invalid="ignore"):  # logarithms of 0 and of NaN
        return decay_of_logs(xr.ufuncs.log10(hidden), np.arange(hidden.sizes["layer"]))


def decay_of_logs(log10_rms: xr.DataArray, numbers: np.ndarray) -> xr.DataArray:
    """The least-squares slope of log₁₀ RMS against the layer's number [decades per layer].

    Args:
      log10_rms: float64 [..., layer]; −∞ where the RMS is 0.
      numbers: of the layers, [layer].

    Returns:
      [...]; infinite where the RMS is 0 in some of the layers; NaN where it is 0 in all of them or not finite in any,
      and of fewer than two layers.
    """
    if len(numbers) < 2:
        return np.nan * log10_rms.sum("layer")
    is_zero, is_finite = log10_rms == -np.inf, xr.ufuncs.isfinite(log10_rms)
    place = xr.DataArray(numbers - numbers.mean(), dims="layer")
    slope = (place * log10_rms.where(is_finite)).sum("layer", skipna=False) / np.square(place).sum()
    falls_to_zero = (is_zero | is_finite).all("layer") & is_zero.any("layer") & is_finite.any("layer")
    return slope.where(~falls_to_zero, np.inf)


def root_mean_squares(data: xr.Dataset) -> xr.Dataset:
    """Those of activation_rms, delta_rms and gradient_rms that a history or a prediction has, in float64.

    They are computed from the recorded logarithms where there are any: these reach below float32's smallest number.
    """
    found = {name: data[name].astype(np.float64) for name in SIGNALS if name in data}
    for name in ("delta", "gradient"):
        if f"{name}_log10_rms" in data:
            found[f"{name}_rms"] = 10 ** data[f"{name}_log10_rms"].astype(np.float64)
    if "activation_mean" in data:
        mean, std = (data[f"activation_{name}"].astype(np.float64) for name in ("mean", "std"))
        found["activation_rms"] = (mean**2 + std**2) ** 0.5
    return xr.Dataset({name: found[name] for name in SIGNALS if name in found})


def band(predicted: xr.Dataset) -> xr.Dataset:
    """Median and 95 % band of the drawn networks.

    Returns:
      predicted, predicted_low, predicted_high, [signal, layer]; predicted_decay, predicted_decay_low,
      predicted_decay_high: median and band of the decay of a single network.
    """
    quantiles = {"": 0.5, "_low": 0.025, "_high": 0.975}
    values = {"predicted": predicted.to_dataarray("signal"), "predicted_decay": decay(predicted["delta_rms"])}
    with np.errstate(invalid="ignore"):  # draws may leave float64
        return xr.Dataset(
            {
                f"{name}{end}": value.quantile(q, "draw", skipna=False).drop_vars("quantile")
                for name, value in values.items()
                for end, q in quantiles.items()
            }
        )


def compared(history: xr.Dataset, predicted: xr.Dataset) -> xr.Dataset:
    """Measurement and prediction side by side, for the layers and signals that were recorded.

    Args:
      history: lanes of one σ_w and σ_b.
      predicted: by `prediction`.

    Returns:
      measured: the geometric mean over lanes, [signal, record, layer], coordinate `step`; measured_low and
      measured_high: the smallest and largest lane; decay, decay_low and decay_high: mean and interval over seeds,
      [record], if δ of all layers was recorded; and the variables of `band`.
    """
    rms = root_mean_squares(history)
    if not rms:
        raise ValueError("no predicted quantity was recorded; allowed: record norms, deltas or activations")
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = xr.ufuncs.log(rms.to_dataarray("signal"))
        found = {"measured": logs.mean("lane"), "measured_low": logs.min("lane"), "measured_high": logs.max("lane")}
    side_by_side = xr.Dataset({name: np.exp(values) for name, values in found.items()})
    if "delta_rms" in rms and rms.sizes["layer"] == predicted.sizes["layer"]:
        each = [estimate(values) for values in by_seed(decay(rms["delta_rms"])).transpose("record", "seed").values]
        columns = zip(*[(e.value, e.low, e.high) for e in each], strict=True)
        for name, column in zip(("decay", "decay_low", "decay_high"), columns, strict=True):
            side_by_side[name] = ("record", np.array(column))
    return side_by_side.assign(band(predicted).sel(signal=logs["signal"], layer=logs["layer"]).data_vars)


def departure(side_by_side: xr.Dataset) -> xr.DataArray:
    """How far training has moved the network from the prediction for step 0 [decades].

    It is the RMS over layers of log₁₀(measured / predicted).

    Args:
      side_by_side: by `compared`.

    Returns:
      [signal, record].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = xr.ufuncs.log10(side_by_side["measured"] / side_by_side["predicted"])
    return (decades**2).mean("layer", skipna=False) ** 0.5


def signals(history: xr.Dataset, dataset: Dataset) -> dict[str, xr.Dataset]:
    """`compared` for each pair of σ_w and σ_b in a run: a label, "" if there is one pair → the comparison."""
    run = run_of(history)
    starts = dict.fromkeys((hypers.sigma_w, hypers.sigma_b) for hypers in run.hypers)
    found = {}
    for sigma_w, sigma_b in starts:
        lanes = np.isclose(history["sigma_w"], sigma_w) & np.isclose(history["sigma_b"], sigma_b)
        predicted = prediction(run.config, Hypers(sigma_w=sigma_w, sigma_b=sigma_b), dataset)
        label = f"σ_w {sigma_w:g}, σ_b {sigma_b:g}" if len(starts) > 1 else ""
        found[label] = compared(history.isel(lane=lanes), predicted)
    return found


def closed_form(config: Config, data: Dataset, n_batches: int = 4) -> np.ndarray:
    """√E[RMS²] of every layer's weight gradient at step 1 by the closed form, over random batches of a replica.

    Args:
      config: a plain network, and its scaling, batch_size, replicas and reduction.
      data: what the batches are drawn from.
      n_batches: number of batches, drawn with seed 0.

    Returns:
      [layers], in the units of `gradient_rms`.
    """
    train = batches.host_examples(data, config)
    widths = (train.inputs.shape[1], *config.hidden, data.classes)
    rng = np.random.default_rng(0)
    squares = []
    for _ in range(n_batches):
        batch = rng.choice(len(train.labels), config.batch_size // config.replicas, replace=False)
        rms = profiles.predicted_profile(
            train.scaled(batch),
            train.labels[batch],
            widths,
            config.activation,
            config.initializer,
            config.output_initializer,
            reduction=config.reduction,
        ).gradient_rms
        squares.append(rms**2)
    return np.sqrt(np.mean(squares, axis=0))
