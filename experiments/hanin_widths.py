"""Gradients of ReLU networks fluctuate with the sum of the reciprocal widths; activations grow by fan_in·Var(W)/2.

Claims: at He's variance E‖Ju‖² neither grows nor falls, but single networks spread: E‖Ju‖⁴/(E‖Ju‖²)² = Π(1 + 5/n_l)
over the hidden layers, and Var ln‖Ju‖² ≈ 5 Σ1/n_l. Depth matters only through these sums. J is the Jacobian of the last
hidden layer at an input, u a direction. Mean squared activations are (fan_in·Var(W)/2)^depth of the input's.

Papers: Hanin 2018, Which Neural Net Architectures Give Rise to Exploding and Vanishing Gradients?, arXiv:1801.03744,
theorem on the moments of the Jacobian's entries; Hanin & Rolnick 2018, How to Start Training: The Effect of
Initialization and Architecture, arXiv:1803.01719, section on the mean length of activations and after its figure of
initializers. The settings are ours; there are no printed numbers to compare with, and theory takes their place.
Command: `python -m experiments hanin_widths` (about a minute on 2 cores).

Which layers count: only hidden ones, as J ends at the last of them. A linear output would add a factor 1 + 2/n; the
inputs add none. The 5 is 3/p − 1 with half of the units active, p = ½, and Gaussian weights (`mean_field` at
σ_w² = 2). Weights of another kurtosis κ have 5 + 12(κ − 3)/n. A unit sums over a layer, so this matters little: Flax's
`he_normal`, truncated at two standard deviations (κ = 2.4), differs by 2 % of 5 at 75 units.

Heavy tails: when 5 Σ1/n_l exceeds about 1, the mean of ‖Ju‖⁴ depends on a few of 10,000 networks. Moments are shown up
to there; the variance of the logarithm, which has light tails, is shown over all layers. Its 5/n is the limit of wide
layers. The exact value, which is what the rows judge, is 1.04 of it at 100 units, 1.18 at 25, 1.38 at 15.

Expected: moments within 10 % of Π(1 + 5/n_l), variances within 5 % of the exact ones and at 100 units within 10 % of
5 Σ1/n_l, growth within 2 % of σ_w²/2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from scipy.stats import norm

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, row
from vgjax import figures
from vgjax.analysis import Estimate
from vgjax.config import Config, Hypers
from vgjax.theory.jacobian import fourth_moment_growth, log_length_variance
from vgjax.theory.profiles import layer_variances
from vgjax.training.probe import Network, per_layer, probe

NAME = "hanin_widths"
TITLE = "Hanin 2018, Hanin & Rolnick 2018: widths, and how lengths spread and grow"
MOMENTS = "after Hanin 2018, 1801.03744; closed form"
WIDE = "after Hanin 2018, 1801.03744; wide layers"
GROWTH = "after Hanin & Rolnick 2018, 1803.01719; closed form"

INPUTS = 20
ARCHITECTURES = {
    "100 units": (100,) * 20,
    "25 units": (25,) * 8,
    "60 and 15 in turn": (60, 15) * 3,
    "narrowing, 160 to 10": (160, 80, 40, 20, 10),
}
WIDEST = "100 units"
LARGEST_SUM = 1.0  # largest 5 Σ1/n_l at which fourth moments are judged and drawn
NETWORKS = {"smoke": 4000, "default": 10_000, "full": 10_000}
INITIALIZERS = {  # label → initializer, factor on every weight
    "He normal × 1.1": ("he_normal", 1.1),
    "He normal": ("he_normal", 1.0),
    "He uniform": ("he_uniform", 1.0),
    "He normal × 0.88": ("he_normal", 0.77374**0.5),  # N(0, 2/fan_in) truncated at 2σ, without correcting the variance
    "LeCun normal": ("lecun_normal", 1.0),
}
DEPTH, WIDTH = 20, 200
SEEDS = {"smoke": 20, "default": 100, "full": 100}

# Fixed before the run.
MOMENT = Within(share=0.10)
VARIANCE = Within(share=0.05)
WIDE_VARIANCE = Within(share=0.10)
LENGTH = Within(share=0.02)


def run(options: Options) -> xr.Dataset:
    """Squared lengths in many narrow networks, and in a few wide ones with several initializers.

    Returns:
      per architecture and layer (NaN beyond its depth): sum of 1/n; moment of ‖Ju‖² and variance of its logarithm over
      networks, each with low and high (95 %) and predicted; per initializer and layer: length, low, high, predicted.
    """
    size, every = options.size, 2 if options.smoke else 1
    architectures, initializers = list(ARCHITECTURES)[every - 1 :: every], list(INITIALIZERS)[::every]
    spread = xr.concat([_spread(name, NETWORKS[size]) for name in architectures], "architecture", join="outer")
    growth = xr.concat([_growth(name, SEEDS[size]) for name in initializers], "initializer")
    return xr.merge([spread, growth], compat="no_conflicts", join="outer").assign_attrs(
        networks=NETWORKS[size], seeds=SEEDS[size]
    )


def jacobian_lengths(network: Network) -> jax.Array:
    """ln‖J_l u‖² of every layer, [L]; J_l is taken at the batch's first row, u is its second row."""
    at, along = network.inputs[:1], network.inputs[1:]
    tangents = jax.jvp(lambda x: network.seen(x).activations, (at,), (along,))[1]
    return per_layer(lambda t: jnp.log(jnp.sum(t**2)), tangents)


def lengths(network: Network) -> jax.Array:
    """Mean squared activation of every layer, [L]."""
    return per_layer(lambda h: jnp.mean(h**2), network.seen(network.inputs).activations)


def _spread(name: str, networks: int) -> xr.Dataset:
    """One architecture's moments and variances over networks, layer by layer."""
    hidden = ARCHITECTURES[name]
    inputs = np.random.default_rng(0).standard_normal((2, INPUTS))
    config = Config(hidden=hidden, activation="relu", initializer="mean_field")
    logs = probe(jacobian_lengths, config, Hypers(sigma_w=2**0.5), networks, inputs)[0, :, :-1].astype(np.float64)
    alive = logs[np.isfinite(logs).all(1)]  # in one network of a thousand all 10 units are off
    square = np.exp(logs - alive.mean(0))
    first, second = square.mean(0), (square**2).mean(0)
    ratio, variance = second / first**2, alive.var(0, ddof=1)
    columns = {
        "sum": np.cumsum(1 / np.array(hidden)),
        **_with_interval("moment", ratio, ratio * (square**2 / second - 2 * square / first)),
        "moment_predicted": np.cumprod(fourth_moment_growth(hidden)),
        **_with_interval("variance", variance, (alive - alive.mean(0)) ** 2),
        "variance_predicted": np.cumsum(log_length_variance(hidden)),
    }
    data = xr.Dataset({key: ("layer", value) for key, value in columns.items()})
    return data.assign_coords(layer=np.arange(1, len(hidden) + 1), architecture=name)


def _growth(name: str, seeds: int) -> xr.Dataset:
    """Mean squared activations divided by the input's, for one initializer."""
    initializer, factor = INITIALIZERS[name]
    config = Config(hidden=(WIDTH,) * DEPTH, activation="relu", initializer=initializer)
    inputs = np.random.default_rng(0).standard_normal((1, WIDTH))
    first = 1000 * list(INITIALIZERS).index(name)  # each initializer has networks of its own
    found = probe(lengths, config, Hypers(sigma_w=factor), range(first, first + seeds), inputs)[0, :, :-1]
    ratio = found.astype(np.float64) / np.mean(inputs**2)
    gain = layer_variances((WIDTH,) * (DEPTH + 1), initializer, None, factor) / 2
    columns = {**_with_interval("length", ratio.mean(0), ratio), "length_predicted": np.cumprod(gain)}
    data = xr.Dataset({key: ("layer", value) for key, value in columns.items()})
    return data.assign_coords(layer=np.arange(1, DEPTH + 1), initializer=name)


def _with_interval(name: str, value: np.ndarray, influence: np.ndarray) -> dict[str, np.ndarray]:
    """A statistic and its 95 % interval by the delta method, from each network's influence on it [networks, L]."""
    half = norm.ppf(0.975) * influence.std(0, ddof=1) / len(influence) ** 0.5
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def check(data: xr.Dataset) -> list[Row]:
    """Moments at the last layer where they can be measured, variances at the last layer, growth per layer."""
    rows = []
    for name in data["architecture"].values.tolist():
        hidden = ARCHITECTURES[name]
        one = data.sel(architecture=name, layer=slice(1, len(hidden)))
        early = one.where(5 * one["sum"] <= LARGEST_SUM + 1e-9, drop=True).isel(layer=-1)
        quantity = f"{name}, {int(early['layer'])} layers: E‖Ju‖⁴ / (E‖Ju‖²)²"
        rows.append(_row(quantity, MOMENTS, early, "moment", MOMENT, data.attrs["networks"]))
        last, quantity = one.isel(layer=-1), f"{name}, {len(hidden)} layers: Var ln‖Ju‖²"
        rows.append(_row(quantity, MOMENTS, last, "variance", VARIANCE, data.attrs["networks"]))
        if name == WIDEST:
            last = last.assign(variance_predicted=5 * last["sum"])
            rows.append(_row(f"{quantity}, as 5 Σ1/n", WIDE, last, "variance", WIDE_VARIANCE, data.attrs["networks"]))
    for name in data["initializer"].values.tolist():
        last = data.sel(initializer=name, layer=DEPTH) ** (1 / DEPTH)
        quantity = f"{name}: growth of the mean squared activation per layer"
        rows.append(_row(quantity, GROWTH, last, "length", LENGTH, data.attrs["seeds"]))
    return rows


def _row(quantity: str, source: str, one: xr.Dataset, what: str, within: Within, n: int) -> Row:
    value, low, high = (float(one[f"{what}{end}"]) for end in ("", "_low", "_high"))
    measured = Estimate(value, low, high, n)
    return row(NAME, quantity, source, measured, within, predicted=float(one[f"{what}_predicted"]))


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """Both measures of spread against the sum of 1/n, and lengths against depth."""
    figure, ((moments, variances, growth),) = figures.panels(1, 3, width=3.3, height=3.2)
    for which, name in enumerate(data["architecture"].values.tolist()):
        one = data.sel(architecture=name).dropna("layer", subset=["sum"])
        early = one.where(5 * one["sum"] <= LARGEST_SUM + 1e-9, drop=True)
        for axes, what, part in ((moments, "moment", early), (variances, "variance", one)):
            figures.theory_line(axes, part["sum"], part[f"{what}_predicted"], which)
            _points(axes, part["sum"], part, what, which, name)
    reach = np.array([0, float(data["sum"].max())])
    (limit,) = variances.plot(reach, 5 * reach, color="0.5", linewidth=0.8, label="5 Σ 1/n, wide layers", zorder=1)
    ends = {}
    for which, name in enumerate(data["initializer"].values.tolist()):
        one = data.sel(initializer=name, layer=slice(1, DEPTH))
        figures.theory_line(growth, one["layer"], one["length_predicted"], which)
        _points(growth, one["layer"][1::3], one.isel(layer=slice(1, None, 3)), "length", which)
        ends[f"{name}: {float(one['length_predicted'][0]):.3g}"] = (float(one["length_predicted"][-1]), which)
    figures.theory_line(moments, [], [], 6, "theory")
    moments.legend(loc="upper left")
    variances.legend(handles=[limit])
    moments.set(xlabel="Σ 1/n over the hidden layers", ylabel="E‖Ju‖⁴ / (E‖Ju‖²)²", title="spread of squared lengths")
    variances.set(xlabel="Σ 1/n over the hidden layers", ylabel="Var ln‖Ju‖²", title="spread of their logarithms")
    growth.set(xlabel="layer", ylabel="mean squared activation / input's", yscale="log")
    growth.set_title("growth by fan_in·Var(W)/2")
    figures.label_ends(growth, DEPTH, ends)
    sentence = (
        "ReLU networks without biases at initialization. Left: fourth moment of ‖Ju‖ over its second squared, J from "
        "the input to every hidden layer, u a direction; middle: variance of ln‖Ju‖²; both against the sum of 1/n "
        "over the layers so far, which is nearly all that matters. Right: the mean squared activation in layers of "
        "200 units changes by fan_in·Var(W)/2 a layer, which stands beside the names. Points: over networks, with 95 % "
        "intervals; dashed: theory at the actual widths."
    )
    return [Picture(NAME, figure, sentence, _table(data))]


def _points(axes: Axes, x: xr.DataArray, one: xr.Dataset, what: str, which: int, label: str | None = None) -> None:
    figures.points(axes, x, one.rename({what: "mean", f"{what}_low": "low", f"{what}_high": "high"}), which, label)


def _table(data: xr.Dataset) -> pd.DataFrame:
    """One row for each measured value."""
    tables = []
    for what, over in (("moment", "architecture"), ("variance", "architecture"), ("length", "initializer")):
        columns = {what: "mean", f"{what}_low": "low", f"{what}_high": "high", f"{what}_predicted": "predicted"}
        one = data[list(columns)].rename(columns).to_dataframe().dropna().reset_index().rename(columns={over: "of"})
        tables.append(one.assign(what=what))
    table = pd.concat(tables)
    numbers = table[["mean", "low", "high", "predicted"]]
    return table.assign(**numbers.map(lambda value: float(f"{value:.5g}")))
