"""A leaky ReLU whose slope is tailored to the depth keeps signals apart that ReLU makes alike.

Claim: ReLU layers map any two signals to correlation 1 as depth grows. If the slope α is solved for so that the whole
stack of L layers maps c = 0 to c = .9, the stack's correlation map is nearly the same at any depth.

Paper: Martens et al. 2021, Rapid training of deep neural networks without skip connections or normalization layers
using Deep Kernel Shaping, arXiv:2110.01765 (the maps), and Zhang, Botev & Martens 2022, TAT, arXiv:2203.08120, section
on tailored rectifiers (leaky ReLU, target η = .9). The condition is from memory of the paper; the four slopes are
closed form: the solutions of this condition for L layers, each with an activation.
Command: `python -m experiments tailored_relu` (about 50 s on 2 cores).

Substitutes: plain layers of 500 units on pairs of vectors stand in for the paper's convolutional networks on images.

Expected: α = .1814, .3027, .4305, .5704 at L = 20, 30, 50, 100, to the printed digits. With σ_w² = 2/(1 + α²) the
correlation of two orthogonal inputs is .9 after L layers, where ReLU's is .948 at L = 20 and .9964 at L = 100. Single
networks of 500 units spread by .03 to .07 around .9, and by a factor of 2 in ReLU's 1 − c at L = 100. In a first run 40
networks were too few to tell that value from 20 % less, so there are 120; the tolerances did not change.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, row
from vgjax import figures, theory
from vgjax.analysis import Estimate, estimate, interval
from vgjax.config import Config, Hypers
from vgjax.training.probe import Network, per_layer, probe

NAME = "tailored_relu"
TITLE = "Martens et al. 2021, Zhang et al. 2022: leaky ReLU tailored to the depth"
PAPER = "after Zhang et al. 2022, 2203.08120; closed form"

WIDTH = 500
TARGET = 0.9  # c after all layers, from c = 0
PRINTED = {20: 0.1814, 30: 0.3027, 50: 0.4305, 100: 0.5704}  # layers → α
STARTS = (-0.8, -0.5, 0.0, 0.5, 0.9)  # correlations of the inputs
SEEDS = {"smoke": 16, "default": 120, "full": 120}

# Fixed before the run.
SLOPE = Within(margin=0.0001)
CORRELATION = Within(margin=0.02)
DEPARTURE = Within(high=0.03)
GAP = Within(share=0.2)  # at L = 100 single networks spread by half


def run(options: Options) -> xr.Dataset:
    """Pairs of inputs in a ReLU network and in networks tailored to each depth, and by the maps.

    Returns:
      c [network, seed, layer, start] and c_predicted without seeds, curve [network, layer, at]: NaN beyond a network's
      depth; slope and depth [network]. The first network has ReLU and the largest depth.
    """
    depths = (20,) if options.smoke else tuple(PRINTED)
    networks = [(0.0, max(depths)), *((theory.tailored_slope(depth, TARGET), depth) for depth in depths)]
    data = xr.concat(
        [_measure_and_predict(*network, SEEDS[options.size]) for network in networks], "network", join="outer"
    )
    slopes, depths = zip(*networks, strict=True)
    return data.assign(slope=("network", list(slopes)), depth=("network", list(depths)))


def _measure_and_predict(slope: float, depth: int, seeds: int) -> xr.Dataset:
    activation, sigma_w2 = f"leaky_relu({slope})", 2 / (1 + slope**2)
    config = Config(hidden=(WIDTH,) * depth, activation=activation, initializer="mean_field")
    found = probe(cosines, config, Hypers(sigma_w=sigma_w2**0.5), seeds, _inputs())[0]
    at = 1 - np.geomspace(2, 0.004, 41)
    through = theory.correlations(np.concatenate([STARTS, at]), 1.0, sigma_w2, 0.0, activation, depth)
    columns = {
        "c": (("seed", "layer", "start"), found.astype(np.float64)),
        "c_predicted": (("layer", "start"), through[:, : len(STARTS)]),
        "curve": (("layer", "at"), through[:, len(STARTS) :]),
    }
    return xr.Dataset(columns, {"layer": np.arange(depth + 1), "start": list(STARTS), "at": at})


def cosines(network: Network) -> jax.Array:
    """Cosines of the first example with the others, in the inputs of each layer, [L, pairs]."""

    def cosine(h: jax.Array) -> jax.Array:
        unit = h / jnp.linalg.norm(h, axis=-1, keepdims=True)
        return 1 - jnp.sum((unit[1:] - unit[:1]) ** 2, axis=-1) / 2  # exact near 1

    return per_layer(cosine, network.seen(network.inputs).inputs)


def _inputs() -> np.ndarray:
    """A vector of mean square 1, and others of mean square 1 whose cosines with it are STARTS."""
    first, second = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, 2)))[0].T * WIDTH**0.5
    cosine = np.array(STARTS)
    return np.concatenate([first[None], np.outer(cosine, first) + np.outer(np.sqrt(1 - cosine**2), second)])


def check(data: xr.Dataset) -> list[Row]:
    """The slopes, and the correlations after all layers."""
    slopes, ends, n = [], [], data.sizes["seed"]
    for network in range(1, data.sizes["network"]):
        depth = int(data["depth"][network])
        last = data.sel(layer=depth)
        tailored, relu = last.isel(network=network), last.isel(network=0)
        slope = Estimate(float(tailored["slope"]), np.nan, np.nan, 0)
        slopes.append(row(NAME, f"L = {depth}: slope α", PAPER, slope, SLOPE, published=PRINTED[depth]))
        quantity = f"L = {depth}, tailored: correlation after all layers, from 0"
        c = estimate(tailored["c"].sel(start=0).values)
        ends.append(row(NAME, quantity, PAPER, c, CORRELATION, predicted=TARGET))
        departure = tailored["c"].mean("seed") - tailored["c_predicted"]
        rms = Estimate(float((departure**2).mean() ** 0.5), np.nan, np.nan, n)
        quantity = f"L = {depth}, tailored: departure of that correlation from the map, RMS over starts"
        ends.append(row(NAME, quantity, PAPER, rms, DEPARTURE))
        quantity = f"L = {depth}, ReLU: 1 − c after all layers, from c = 0"
        gap, predicted = estimate(1 - relu["c"].sel(start=0).values), 1 - float(relu["c_predicted"].sel(start=0))
        ends.append(row(NAME, quantity, PAPER, gap, GAP, predicted=predicted))
    return [*slopes, *ends]


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """The map of all layers at two depths, and the cosine of two orthogonal signals layer by layer."""
    figure, ((whole, way),) = figures.panels(1, 2, width=3.9, height=3.4)
    found, depths = interval(data["c"]), data["depth"].values
    shown = [("ReLU", 0, depths[1]), ("ReLU", 0, depths[-1]), ("tailored", 1, depths[1]), ("tailored", -1, depths[-1])]
    for which, (name, network, depth) in enumerate(shown):
        end = {"network": network, "layer": depth}
        apart = interval(1 - data["c"].isel(end))
        figures.theory_line(whole, data["at"], 1 - data["curve"].isel(end), which)
        figures.points(whole, data["start"], apart, which, f"{name}, {depth} layers")
    whole.plot(data["at"], 1 - data["at"], color="0.6", linewidth=0.8, label="no change")
    whole.legend(loc="lower left")
    whole.set(yscale="log", ylim=(1e-5, 3), xticks=(-1, -0.5, 0, 0.5, 1))
    whole.set(xlabel="cosine of two inputs, $c^0$", ylabel="1 − cosine after all layers, 1 − $c^L$")
    whole.set_title("all layers together, from any $c^0$")
    for which, depth in enumerate(depths):
        mean = found.isel(network=which).sel(start=0)
        layers, every = slice(0, depth), np.unique(np.round(np.linspace(0, depth, 11)).astype(int))
        predicted = data["c_predicted"].isel(network=which).sel(start=0, layer=layers)
        figures.theory_line(way, predicted["layer"], predicted, which)
        name = f"tailored to {depth}, $\\alpha$ = {float(data['slope'][which]):.4f}" if which else "ReLU"
        figures.points(way, every, mean.sel(layer=every), which, name)
    way.axhline(TARGET, color="0.5", linewidth=0.8)
    figures.theory_line(way, [], [], 6, "theory")
    way.legend(loc="lower right")
    way.set(xlabel="layer", ylabel="cosine of the two signals, c", title="from $c^0$ = 0, layer by layer")
    sentence = (
        "What is left of the angle between two inputs in networks of 500 units at initialization. Left: the cosine "
        "after all layers against that of the inputs: ReLU makes all pairs more alike the deeper it is; leaky ReLU "
        "with the slope tailored to the depth does the same to them at 20 layers as at 100. Right: orthogonal inputs, "
        "layer by layer; the tailored networks reach .9 (grey) in their last layer. Points: means over networks with "
        "95 % intervals; dashed: theory."
    )
    table = found.assign(predicted=data["c_predicted"], slope=data["slope"], depth=data["depth"])
    frame = table.sel(layer=table["layer"] % 5 == 0).to_dataframe().dropna().reset_index().drop(columns="network")
    return [Picture(NAME, figure, sentence, frame.round(5))]
