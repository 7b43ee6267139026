"""SELU brings mean and variance of the activations back to (0, 1) from other starts.

Claim: SELU's map of mean μ and variance ν from layer to layer has the stable fixed point (0, 1) for weights of variance
1/fan_in. There a departure of ν shrinks to .782648 of itself a layer, and changes μ by .088835 of itself. Squared
gradients grow by χ₁ = 1.07157 a layer.

Paper: Klambauer, Unterthiner, Mayr & Hochreiter 2017, Self-normalizing neural networks, arXiv:1706.02515, sections on
the mapping of mean and variance and on its fixed point. Closed form: for z ~ N(0, ν), its moments are error functions.
Command: `python -m experiments selu_fixed_point` (about 20 s on 2 cores).

Substitutes: in the paper's map the weights of a unit add up to 0. Independent Gaussian weights do so only on average,
and the next layer sees q = ν + μ², which is ν to first order at the fixed point. Inputs are Gaussian vectors with exact
mean and variance; networks of 500 units stand for wide ones.

Expected: the printed numbers to 1e-4 by quadrature; in networks, means within .01 and variances within 3 % of the map.
Single networks of 500 units spread by .045 in mean and .09 in variance: what a layer adds, and what is left of the
layers before it, to first order in 1/width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.ticker import MaxNLocator
from scipy.special import ndtr

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, row
from vgjax import figures, theory
from vgjax.analysis import Estimate, estimate, geometric_estimate, interval
from vgjax.config import Config, Hypers
from vgjax.training.probe import Network, per_layer, probe

NAME = "selu_fixed_point"
TITLE = "Klambauer et al. 2017: SELU's fixed point of mean and variance"
PAPER = "Klambauer et al. 2017, 1706.02515; closed form"
WIDE = "after Klambauer et al. 2017, 1706.02515; map at infinite width"
NARROW = "after Klambauer et al. 2017, 1706.02515; first order in 1/width"

WIDTH, DEPTH = 500, 20
CONFIG = Config(hidden=(WIDTH,) * DEPTH, activation="selu", initializer="mean_field")
LAMBDA, ALPHA = 1.0507009873554805, 1.6732632423543772  # SELU's constants, as the paper prints them
STARTS = ((0.0, 4.0), (-1.0, 2.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.2))  # mean and variance of the inputs
NEARBY_STARTS = ((0.0, 1.1), (0.0, 0.9))  # two more starts, whose difference gives the derivative
PRINTED = {"mean μ'": 0.0, "variance ν'": 1.0, "∂ν'/∂ν": 0.782648, "∂μ'/∂ν": 0.088835, "χ₁": 1.07157}
SHRINKING_IN = 5  # layers over which the shrinking of ν's departure is measured
SETTLED = slice(16, DEPTH)  # layers
SEEDS = {"smoke": 30, "default": 200, "full": 200}

# Fixed before the run.
NUMBER = Within(margin=0.0001)
MEAN = Within(margin=0.01)
VARIANCE = Within(share=0.03)
DEPARTURE = Within(high=0.03)
SHRINKING = Within(share=0.03)
LEAK = Within(share=0.1)
CHI1 = Within(share=0.01)
SPREAD = Within(share=0.15)


def run(options: Options) -> xr.Dataset:
    """The map's numbers at (0, 1); mean and variance over the layers, measured and predicted.

    Returns:
      mean and variance [seed, layer, start] of the activations, layer 0 the inputs; the same without seeds as
      mean_predicted and variance_predicted, and the standard deviations of single networks as mean_spread and
      variance_spread; growth of ‖δ‖² per layer going back [seed]; by_quadrature and closed_form [number].
    """
    starts, seeds = np.array([*STARTS, *NEARBY_STARTS]), SEEDS[options.size]
    direction = np.random.default_rng(0).standard_normal(WIDTH)
    direction = (direction - direction.mean()) / direction.std()
    inputs = starts[:, :1] + np.sqrt(starts[:, 1:]) * direction
    measured = probe(moments, CONFIG, Hypers(), seeds, inputs)
    log_delta = probe(delta, CONFIG, Hypers(), seeds, direction[None])[0].astype(np.float64)
    numbers = {"by_quadrature": _by_quadrature(), "closed_form": _closed_form()}
    return xr.Dataset(
        {name: (("seed", "layer", "start"), value[0].astype(np.float64)) for name, value in measured.items()}
        | {name: (("layer", "start"), value) for name, value in _predicted_paths(*starts.T).items()}
        | {name: ("number", [values[key] for key in PRINTED]) for name, values in numbers.items()}
        | {"growth": ("seed", np.exp((log_delta[:, 0] - log_delta[:, DEPTH - 1]) / (DEPTH - 1)))},
        {"layer": np.arange(DEPTH + 1), "start": np.arange(len(starts)), "number": list(PRINTED)},
    )


def moments(network: Network) -> dict[str, jax.Array]:
    """Mean and variance over the units of each layer's inputs, [L, B]."""
    given = network.seen(network.inputs).inputs
    return {
        "mean": per_layer(lambda h: jnp.mean(h, axis=-1), given),
        "variance": per_layer(lambda h: jnp.var(h, axis=-1), given),
    }


def delta(network: Network) -> jax.Array:
    """ln‖δ‖² of every layer, [L]."""
    return per_layer(lambda d: jnp.log(jnp.sum(d**2)), network.step().deltas)


def _by_quadrature() -> dict[str, float]:
    mean, square = (float(theory.moment(power, 1.0, "selu")) for power in (1, 2))
    leak, growth = (float(theory.moment_growth(power, 1.0, "selu")) for power in (1, 2))
    chi1 = float(theory.chi1(1.0, 1.0, "selu"))
    return dict(zip(PRINTED, (mean, square - mean**2, growth - 2 * mean * leak, leak, chi1), strict=True))


def _closed_form() -> dict[str, float]:
    """The numbers from E[exp(kz); z < 0] = exp(k²/2) Φ(−k), z ~ N(0, 1), and its derivative by the variance."""
    one, two = np.exp(0.5) * ndtr(-1), np.exp(2) * ndtr(-2)
    mean = LAMBDA * (1 / np.sqrt(2 * np.pi) + ALPHA * (one - 0.5))
    square = LAMBDA**2 * (0.5 + ALPHA**2 * (two - 2 * one + 0.5))
    leak = LAMBDA / 2 * ((1 - ALPHA) / np.sqrt(2 * np.pi) + ALPHA * one)
    growth = LAMBDA**2 * (0.5 + ALPHA**2 * (2 * two - one))
    chi1 = LAMBDA**2 * (0.5 + ALPHA**2 * two)
    return dict(zip(PRINTED, (mean, square - mean**2, growth - 2 * mean * leak, leak, chi1), strict=True))


def _predicted_paths(mean: np.ndarray, variance: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and variance at infinite width, and their standard deviations at WIDTH, [layer, start].

    Given the layer below, the units of a layer are independent. So the layer adds to the covariance of its mean and its
    mean square Q that of one unit over WIDTH; the deviation of the Q below is passed on by the derivatives of both.
    """
    square, spread = variance + mean**2, np.zeros((len(mean), 2, 2))  # covariance of mean and Q
    rows = [(mean, variance, *np.zeros((2, len(mean))))]
    for _ in range(DEPTH):
        m1, m2, m3, m4 = (np.asarray(theory.moment(power, square, "selu")) for power in (1, 2, 3, 4))
        handed_on = np.stack([theory.moment_growth(power, square, "selu") for power in (1, 2)], axis=-1)
        added = np.array([[m2 - m1**2, m3 - m1 * m2], [m3 - m1 * m2, m4 - m2**2]]).transpose(2, 0, 1) / WIDTH
        spread = spread[:, 1:, 1:] * handed_on[:, :, None] * handed_on[:, None, :] + added
        square = m2
        of_variance = np.stack([-2 * m1, np.ones_like(m1)], axis=-1)  # variance = Q − mean²
        variance_spread = np.sqrt(np.einsum("si,sij,sj->s", of_variance, spread, of_variance))
        rows.append((m1, m2 - m1**2, np.sqrt(spread[:, 0, 0]), variance_spread))
    names = ("mean_predicted", "variance_predicted", "mean_spread", "variance_spread")
    return dict(zip(names, np.transpose(rows, (1, 0, 2)), strict=True))


def check(data: xr.Dataset) -> list[Row]:
    """The printed numbers by quadrature and in networks, and the spread of single networks."""
    rows, n = [], data.sizes["seed"]
    for name, printed in PRINTED.items():
        of = data.sel(number=name)
        found, closed = Estimate(float(of["by_quadrature"]), np.nan, np.nan, 0), float(of["closed_form"])
        quantity = f"map at (0, 1), quadrature: {name}"
        rows.append(row(NAME, quantity, PAPER, found, NUMBER, published=printed, predicted=closed))
    shown = data.isel(start=slice(len(STARTS)))
    late = shown.sel(layer=SETTLED).mean(("layer", "start"))
    where = f"layers {SETTLED.start} to {DEPTH}, all starts"
    rows.append(row(NAME, f"mean in {where}", WIDE, estimate(late["mean"].values), MEAN, predicted=0.0))
    rows.append(row(NAME, f"variance in {where}", WIDE, estimate(late["variance"].values), VARIANCE, predicted=1.0))
    departures = {
        "departure of the mean": shown["mean"].mean("seed") - shown["mean_predicted"],
        "relative departure of the variance": shown["variance"].mean("seed") / shown["variance_predicted"] - 1,
    }
    for name, departure in departures.items():
        rms = Estimate(float((departure**2).mean() ** 0.5), np.nan, np.nan, n)
        rows.append(row(NAME, f"{name} from the map, RMS over layers and starts", WIDE, rms, DEPARTURE))
    gap = data[["mean", "variance"]].isel(start=-2) - data[["mean", "variance"]].isel(start=-1)
    start = float(gap["variance"].sel(layer=0).mean())
    shrinking = geometric_estimate((gap["variance"].sel(layer=SHRINKING_IN).values / start) ** (1 / SHRINKING_IN))
    in_networks = {
        "∂ν'/∂ν": (shrinking, SHRINKING),
        "∂μ'/∂ν": (estimate(gap["mean"].sel(layer=1).values / start), LEAK),
        "χ₁": (geometric_estimate(data["growth"].values), CHI1),
    }
    for name, (found, within) in in_networks.items():
        predicted = float(data["closed_form"].sel(number=name))
        rows.append(row(NAME, f"in networks: {name}", WIDE, found, within, predicted=predicted))
    for name in ("mean", "variance"):
        settled = shown.sel(layer=SETTLED)
        found = Estimate(float((settled[name].var("seed", ddof=1)).mean() ** 0.5), np.nan, np.nan, n)
        predicted = float((settled[f"{name}_spread"] ** 2).mean() ** 0.5)
        quantity = f"standard deviation of single networks' {name}, {where}"
        rows.append(row(NAME, quantity, NARROW, found, SPREAD, predicted=predicted))
    return rows


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """Mean and variance against layer, from all starts."""
    figure, (columns,) = figures.panels(1, 2, width=3.9, height=3.3)
    shown = data.isel(start=slice(len(STARTS)))
    found = {name: interval(shown[name]) for name in ("mean", "variance")}
    for name, axes in zip(found, columns, strict=True):
        for which, (mean, variance) in enumerate(STARTS):
            one, measured = shown.isel(start=which), found[name].isel(start=which)
            predicted, spread = one[f"{name}_predicted"], 1.96 * one[f"{name}_spread"]
            figures.theory_band(axes, one["layer"], predicted - spread, predicted + spread)
            figures.theory_line(axes, one["layer"], predicted, which)
            figures.points(axes, one["layer"], measured, which, f"({mean:g}, {variance:g})".replace("-", "−"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set(xlabel="layer (0: the inputs)", title=f"{name}, from five starts")
    left, right = columns
    left.set_ylabel("mean μ of the activations (dimensionless)")
    right.set_ylabel("variance ν of the activations (dimensionless)")
    figures.theory_line(right, [], [], 6, "theory, infinite width")
    figures.theory_band(right, [], [], [], "theory, 95 % of networks")
    right.legend(title="start (μ, ν)", title_fontsize=8)
    sentence = (
        "Mean (left) and variance (right) of the activations in SELU networks of 500 units with weights of variance "
        "1/fan_in, from inputs of five means and variances: within some ten layers all return to (0, 1). Points: means "
        "over networks with 95 % intervals; dashed: the map at infinite width; grey: 95 % of single networks, to first "
        "order in 1/width."
    )
    tables = [
        xr.merge([values, shown[f"{name}_predicted"].rename("predicted"), shown[f"{name}_spread"].rename("spread")])
        .to_dataframe()
        .reset_index()
        .assign(what=name)
        for name, values in found.items()
    ]
    table = pd.concat(tables)
    first = np.array(STARTS)[table["start"]]
    table = table.assign(start_mean=first[:, 0], start_variance=first[:, 1]).drop(columns="start")
    return [Picture(NAME, figure, sentence, table.round(5))]
