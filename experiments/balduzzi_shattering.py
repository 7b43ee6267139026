"""Gradients of deep plain networks resemble white noise along a line of inputs; those of residual networks do not.

Claim: the correlation of ∂y/∂x at two inputs falls with the angle between them, and falls faster in deeper plain ReLU
networks. At 24 layers the gradients at neighbouring inputs are almost uncorrelated: they are shattered. In residual
networks of 50 layers gradients stay correlated over wide angles, and are nearly equal where the branch is scaled down.

Paper: Balduzzi, Frean, Leary, Lewis, Ma & McWilliams 2017, The Shattered Gradients Problem: If resnets are the answer,
then what is the question?, arXiv:1702.08591, after its figure of gradients over a one-dimensional input (1 and 24
layers, residual 50, 200 units) and its theorems on their covariance. The setting is from memory of the paper; theory
takes the place of printed numbers.
Command: `python -m experiments balduzzi_shattering` (about half a minute on 2 cores).

Substitutes: the paper's networks over a line depend on biases. There are none here, so only the angle between inputs
counts, and the line is a great circle. There is no batch norm either, so the activations of different inputs become
alike with depth. Theory is then Π(1 − θ_l/π) with the angle θ_l of layer l, which falls by a power of depth; with
angles that stay at π/2, as in the paper, it would be 2^(−L). A residual layer is h + φ(Wh): Π(1 − θ_l/(2π)) at
σ_w² = 2, the paper's (3/4)^L at π/2; β = .1 scales the branch.

Only the part of the gradient across the plane of the circle is used, 198 of its 200 directions. Within the plane the
gradient follows y itself, as ∂y/∂x·x = y. In a first run, which kept that part, both residual cases were off theory (by
RMS .15 at β = .1 and .17 at β = 1).

Expected: correlations within .05 of theory at all angles and depths. At 200 units and 24 layers they are a little
higher: the angles of single networks spread, and the product is convex in them.

What differs: 50 residual layers at β = 1 (.84 at 22.5° and .35 at 90°, where infinite width has .64 and .22). Here ReLU
ends the branch (the paper's branches end with weights), so that units gain a mean, and the direction of the activations
themselves grows by 3.1 a layer where all others grow by 2. At n units a share 1/n of the gradient is in that direction
after a few layers, and 1.5^L/n later: at 200 units it dominates beyond some 13 layers. With β = .1 the two growths are
1.1 and 1.01 a layer, and it does not. A smoke run leaves this case out.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, row
from vgjax import figures
from vgjax.analysis import Estimate, estimate, interval
from vgjax.config import Config, Hypers
from vgjax.network.layer_names import layer_name
from vgjax.theory.jacobian import input_gradient_correlation
from vgjax.training.probe import Network, probe

NAME = "balduzzi_shattering"
TITLE = "Balduzzi et al. 2017: shattered gradients"
PAPER = "after Balduzzi et al. 2017, 1702.08591; closed form"

WIDTH = 200
CASES: dict[
    str, tuple[int, Literal["plain", "residual"], float]
] = {  # name → hidden layers, branch, scale β of a layer's output
    "plain, 1 layer": (1, "plain", 1.0),
    "plain, 8 layers": (8, "plain", 1.0),
    "plain, 24 layers": (24, "plain", 1.0),
    "residual, 50 layers": (50, "residual", 1.0),
    "residual, 50 layers, β = .1": (50, "residual", 0.1),
}
TOO_NARROW = "residual, 50 layers"  # WIDTH units are too few for the theory of infinite width at this depth
SIGMA_W2 = 2.0
STEPS = 64  # inputs on the circle
SEEDS = {"smoke": 24, "default": 100, "full": 100}
JUDGED_STEPS = (4, 16)  # angles that the rows judge, in steps of the circle

# Fixed before the run.
CORRELATION = Within(margin=0.05)
DEPARTURE = Within(high=0.03)


def run(options: Options) -> xr.Dataset:
    """Correlation of the input gradients at all angles, in networks and in theory.

    Returns:
      measured [case, seed, angle] and predicted [case, angle]; angles in degrees.
    """
    cases = [name for name in CASES if not (options.smoke and name == TOO_NARROW)]
    parts = [_measure_and_predict(name, SEEDS[options.size]) for name in cases]
    return xr.concat(parts, xr.DataArray(cases, dims="case", name="case"))


def correlations(network: Network) -> jax.Array:
    """Cosine between the gradients ∂y/∂x of all pairs of inputs, without their parts in the circle's plane, [B, B]."""
    output = layer_name(len(network.program.config.hidden) + 1)
    gradient = jax.grad(lambda x: jnp.sum(network.seen(x).activations[output]))(network.inputs)
    plane = network.inputs[:: STEPS // 4][:2] / WIDTH**0.5
    gradient = gradient - gradient @ plane.T @ plane
    unit = gradient / jnp.linalg.norm(gradient, axis=1, keepdims=True)
    return unit @ unit.T


def _measure_and_predict(name: str, seeds: int) -> xr.Dataset:
    """One case, in networks and in theory; pairs at the same angle are averaged."""
    layers, branch, scale = CASES[name]
    config = Config(hidden=(WIDTH,) * layers, activation="relu", initializer="mean_field", branch=branch)
    inputs = _circle()
    sigma_w = scale * SIGMA_W2**0.5
    found = probe(correlations, config, Hypers(sigma_w=sigma_w), seeds, inputs, classes=1)[0].astype(np.float64)
    steps = np.arange(STEPS // 2 + 1)
    at = np.arange(STEPS)
    measured = np.stack([found[:, at, (at + step) % STEPS].mean(1) for step in steps], axis=1)
    half_circle = inputs[: len(steps)]
    predicted = input_gradient_correlation(half_circle, "relu", [sigma_w**2] * (layers + 1), branch == "residual")[-1]
    columns = {"measured": (("seed", "angle"), measured), "predicted": ("angle", predicted)}
    return xr.Dataset(columns, {"angle": 360 * steps / STEPS})


def _circle() -> np.ndarray:
    """Inputs of mean square 1 and mean 0 on a great circle."""
    directions = np.random.default_rng(0).standard_normal((WIDTH, 2))
    plane = np.linalg.qr(directions - directions.mean(0))[0] * WIDTH**0.5
    angles = 2 * np.pi * np.arange(STEPS) / STEPS
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T


def check(data: xr.Dataset) -> list[Row]:
    """The correlation at two angles, and the departure from theory over all angles."""
    rows = []
    for name in data["case"].values.tolist():
        one = data.sel(case=name)
        for step in JUDGED_STEPS:
            there = one.isel(angle=step)
            quantity = f"{name}: correlation of gradients at {float(there['angle']):g}°"
            found = estimate(there["measured"].values)
            rows.append(row(NAME, quantity, PAPER, found, CORRELATION, predicted=float(there["predicted"])))
        rms = float(((one["measured"].mean("seed") - one["predicted"]) ** 2).mean() ** 0.5)
        departure = Estimate(rms, np.nan, np.nan, data.sizes["seed"])
        rows.append(row(NAME, f"{name}: departure from theory, RMS over angles", PAPER, departure, DEPARTURE))
    return rows


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """Correlation against angle."""
    figure, ((axes,),) = figures.panels(1, 1, width=5.4, height=3.6)
    found = interval(data["measured"])
    every = np.unique(np.concatenate([np.arange(8), np.arange(8, STEPS // 2 + 1, 3)]))
    for which, name in enumerate(data["case"].values.tolist()):
        figures.theory_line(axes, data["angle"], data["predicted"].sel(case=name), which)
        one = found.sel(case=name).isel(angle=every)
        figures.points(axes, one["angle"], one, which, name)
    axes.set(xlabel="angle between two inputs (degrees)", ylabel="correlation of ∂y/∂x at the two", ylim=(-0.05, 1.05))
    axes.set_xticks(range(0, 181, 30))
    figures.theory_line(axes, [], [], 6, "theory, infinite width")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    sentence = (
        "How far the gradients of one output with respect to the input agree at two inputs of a great circle, in "
        "ReLU networks of 200 units at initialization. In plain networks the agreement is confined to ever smaller "
        "angles as depth grows: gradients shatter. Residual networks of 50 layers keep it, the more the smaller β, "
        "the scale of their branches. Points: means over networks with 95 % intervals; dashed: theory at infinite "
        "width, which at β = 1 and this depth 200 units are too few for."
    )
    table = found.assign(predicted=data["predicted"]).to_dataframe().reset_index().round(5)
    return [Picture(NAME, figure, sentence, table)]
