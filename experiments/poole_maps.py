"""Lengths and correlations of signals pass from layer to layer by two maps with one stable fixed point each.

Claim: in a random tanh network the length q of a signal settles within a few layers, whatever it was at first. The
correlation c of two signals tends to 1 in the ordered phase (σ_w = 1.3) and to a c* below 1 in the chaotic phase
(σ_w = 2.5, 4), where the map's slope χ₁ at c = 1 is above 1.

Paper: Poole, Lahiri, Raghu, Sohl-Dickstein & Ganguli 2016, Exponential expressivity in deep neural networks through
transient chaos, arXiv:1606.05340, after its figures of the length map and of the correlation map: tanh, 1000 units,
σ_b = .3. The setting is from memory of the paper; there are no printed numbers to compare with, and theory takes their
place.
Command: `python -m experiments poole_maps` (about half a minute on 2 cores, at the paper's width).

Expected: lengths within 3 % of the length map's, correlations within .03 of the correlation map's, over all layers and
starts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, row
from vgjax import figures, theory
from vgjax.analysis import Estimate, estimate, interval
from vgjax.config import Config, Hypers
from vgjax.theory.profiles import layer_variances, pair_profile
from vgjax.training.probe import Network, per_layer, probe

NAME = "poole_maps"
TITLE = "Poole et al. 2016: maps of length and correlation"
PAPER = "after Poole et al. 2016, 1606.05340; closed form"

DEPTH = 20
SIGMA_B = 0.3
LENGTHS = (0.3, 1.0, 3.0, 6.0, 10.0, 15.0)  # q¹ of signals along one direction
CORRELATIONS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.9999)  # c¹ of pairs at q*
SETTLED = slice(11, DEPTH)  # layers


class Size(NamedTuple):
    """How much is simulated."""

    width: int
    seeds: int
    sigmas: tuple[float, ...]  # σ_w


FULL_SIZE = Size(1000, 40, (1.3, 2.5, 4.0))
SIZES = {"smoke": Size(50, 2, (1.3, 4.0)), "default": FULL_SIZE, "full": FULL_SIZE}

# Fixed before the run.
LENGTH = Within(share=0.03)
CORRELATION = Within(margin=0.03)
CHI1 = Within(share=0.03)
DEPARTURE = Within(high=0.03)


def run(options: Options) -> xr.Dataset:
    """Signals of several lengths and pairs of several correlations, in networks and by the maps.

    Returns:
      q [sigma_w, seed, layer, start] and c [sigma_w, seed, layer, pair], q_predicted and c_predicted without seeds; the
      maps' curves q_curve [sigma_w, q_at] and c_curve [sigma_w, c_at]; q_star, c_star and chi1 [sigma_w].
    """
    size = SIZES[options.size]
    parts = [_measure_and_predict(sigma_w, size) for sigma_w in size.sigmas]
    return xr.concat(parts, xr.DataArray(list(size.sigmas), dims="sigma_w", name="sigma_w"))


def _measure_and_predict(sigma_w: float, size: Size) -> xr.Dataset:
    config = Config(hidden=(size.width,) * (DEPTH - 1), activation="tanh", initializer="mean_field")
    fixed = theory.fixed_point("tanh", sigma_w**2, SIGMA_B**2)
    inputs = _inputs(sigma_w, fixed.q, size.width)
    measured = probe(
        products, config, Hypers(sigma_w=sigma_w, sigma_b=SIGMA_B), size.seeds, inputs, classes=size.width
    )[0]
    variances = layer_variances((size.width,) * (DEPTH + 1), config.initializer, None, sigma_w)
    predicted = pair_profile(inputs, config.activation, variances, SIGMA_B).preactivation
    q_at, c_at = np.linspace(0, 16, 81), np.linspace(0, 1, 81)
    q_curve = theory.length_map(q_at, sigma_w**2, SIGMA_B**2, "tanh")
    c_curve = theory.correlation_map(c_at, fixed.q, sigma_w**2, SIGMA_B**2, "tanh")
    columns: dict = {}
    for name, found, over in (("", measured, ("seed", "layer")), ("_predicted", predicted, ("layer",))):
        q, c = _lengths_and_correlations(np.asarray(found, np.float64))
        columns |= {f"q{name}": ((*over, "start"), q), f"c{name}": ((*over, "pair"), c)}
    columns |= {"q_curve": ("q_at", q_curve), "c_curve": ("c_at", c_curve)}
    columns |= {"q_star": fixed.q, "c_star": fixed.c, "chi1": fixed.chi1}
    coordinates = {"start": list(LENGTHS), "pair": list(CORRELATIONS), "layer": np.arange(1, DEPTH + 1)}
    return xr.Dataset(columns, {**coordinates, "q_at": q_at, "c_at": c_at})


def products(network: Network) -> jax.Array:
    """z_a·z_b / width for all pairs of the batch, layer by layer, [L, B, B]."""
    return per_layer(lambda z: z @ z.T / z.shape[-1], network.seen(network.inputs).pre_activations)


def _inputs(sigma_w: float, q_star: float, width: int) -> np.ndarray:
    """Signals whose q¹ are LENGTHS; then one with q¹ = q*, and others with q* whose c¹ with it are CORRELATIONS."""
    first, second = np.linalg.qr(np.random.default_rng(0).standard_normal((width, 2)))[0].T * width**0.5
    square = (np.array([*LENGTHS, q_star]) - SIGMA_B**2) / sigma_w**2  # ‖x‖²/n₀
    cosine = (np.array(CORRELATIONS) * q_star - SIGMA_B**2) / (q_star - SIGMA_B**2)
    others = np.outer(cosine, first) + np.outer(np.sqrt(1 - cosine**2), second)
    return np.concatenate([np.outer(np.sqrt(square), first), square[-1] ** 0.5 * others])


def _lengths_and_correlations(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q of the first signals (LENGTHS) and c of the pairs (CORRELATIONS), from all products [..., B, B]."""
    q, base = np.diagonal(products, axis1=-2, axis2=-1), len(LENGTHS)
    c = products[..., base, base + 1 :] / np.sqrt(q[..., base, None] * q[..., base + 1 :])
    return q[..., :base], c


def check(data: xr.Dataset) -> list[Row]:
    """The fixed points, the slope that decides between order and chaos, and the departure from the maps."""
    rows = []
    for sigma_w in data["sigma_w"].values:
        one, at, n = data.sel(sigma_w=sigma_w), f"σ_w = {sigma_w:g}", data.sizes["seed"]
        late = one.sel(layer=SETTLED).mean("layer")
        quantity = f"{at}: q in layers {SETTLED.start} to {DEPTH}, fixed point of the length map"
        length = estimate(late["q"].mean("start").values)
        rows.append(row(NAME, quantity, PAPER, length, LENGTH, predicted=float(one["q_star"])))
        quantity = f"{at}: c in layers {SETTLED.start} to {DEPTH}, from c = .25 in layer 1"
        c = late.sel(pair=0.25)
        predicted = float(c["c_predicted"])
        rows.append(row(NAME, quantity, PAPER, estimate(c["c"].values), CORRELATION, predicted=predicted))
        quantity = f"{at}: slope of the correlation map at c = 1 (above 1: chaos)"
        gap = 1 - one["c"].sel(pair=CORRELATIONS[-1])
        slopes = estimate(((gap.sel(layer=4) / gap.sel(layer=1)) ** (1 / 3)).values)
        rows.append(row(NAME, quantity, PAPER, slopes, CHI1, predicted=float(one["chi1"])))
        departures = {
            "relative departure of q": one["q"].mean("seed") / one["q_predicted"] - 1,
            "departure of c": one["c"].mean("seed") - one["c_predicted"],
        }
        for name, departure in departures.items():
            rms = Estimate(float((departure**2).mean() ** 0.5), np.nan, np.nan, n)
            quantity = f"{at}: {name} from the map, RMS over layers and starts"
            rows.append(row(NAME, quantity, PAPER, rms, DEPARTURE))
    return rows


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """Above, both maps; below, length and correlation against layer."""
    figure, ((q_map, c_map), (q_layers, c_layers)) = figures.panels(2, 2, width=3.6, height=3.0)
    q, c = interval(data["q"]), interval(data["c"])
    _plot_map(q_map, data["q_at"], data["q_curve"], q)
    _plot_map(c_map, data["c_at"], data["c_curve"], c)
    _plot_layers(q_layers, data["q_predicted"], q, "start")
    _plot_layers(c_layers, data["c_predicted"], c, "pair")
    q_map.set(title="lengths: from one layer to the next", xlabel="length q in layer l", ylabel="q in layer l + 1")
    c_map.set(title="correlations: from one layer to the next", xlabel="correlation c in layer l")
    c_map.set_ylabel("c in layer l + 1")
    q_layers.set(title="lengths, from six starts", xlabel="layer", ylabel="length q (mean of z²)", ylim=(0, 16))
    c_layers.set(title="correlations, from six starts", xlabel="layer", ylabel="correlation c")
    figures.theory_line(q_map, [], [], 6, "theory")
    q_map.legend(loc="upper left")
    for axes in (q_layers, c_layers):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    sentence = (
        "Length q (left) and correlation c (right) of signals in tanh networks of 1000 units at initialization, from "
        "layer to layer (above) and over the layers (below). Points: means over networks with 95 % intervals; dashed: "
        "theory; grey: no change. Lengths settle within a few layers; correlations tend to 1 at σ_w = 1.3, and to "
        "less at 2.5 and 4, where the map leaves (1, 1) with a slope above 1."
    )
    tables = [
        xr.merge([values, data[f"{what}_predicted"].rename("predicted")])
        .rename({start: "first"})
        .to_dataframe()
        .reset_index()
        .assign(what=what)
        for what, start, values in (("q", "start", q), ("c", "pair", c))
    ]
    return [Picture(NAME, figure, sentence, pd.concat(tables).round(5))]


def _plot_map(axes: Axes, at: xr.DataArray, curves: xr.DataArray, found: xr.Dataset) -> None:
    """Theory's map for each σ_w, and the first two layers of the networks on it."""
    axes.plot(at, at, color="0.7", linewidth=0.8)
    for which, sigma_w in enumerate(found["sigma_w"].values):
        one = found.sel(sigma_w=sigma_w)
        figures.theory_line(axes, at, curves.sel(sigma_w=sigma_w), which)
        for layer in (1, 2):
            label = f"$\\sigma_w$ = {sigma_w:g}" if layer == 1 else None
            figures.points(axes, one["mean"].sel(layer=layer), one.sel(layer=layer + 1), which, label)


def _plot_layers(axes: Axes, predicted: xr.DataArray, found: xr.Dataset, start: str) -> None:
    """The values from every start against layer."""
    for which, sigma_w in enumerate(found["sigma_w"].values):
        for first in found[start].values:
            one = found.sel({"sigma_w": sigma_w, start: first})
            figures.theory_line(axes, one["layer"], predicted.sel({"sigma_w": sigma_w, start: first}), which)
            figures.points(axes, one["layer"], one, which)
