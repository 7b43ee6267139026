"""How unevenly a deep random network stretches: the singular values of its Jacobian.

Claim: the variance of the eigenvalues of JJᵀ over their mean squared is L(μ₂/μ₁² − 1 − s₁), which grows with depth.
With μ_k = E[φ′²ᵏ], μ₂/μ₁² is 1 for linear and 2 for ReLU units; s₁ is −1 for Gaussian and 0 for orthogonal weights. So
orthogonal weights keep this variance at 0 in linear networks, and only halve it in ReLU networks.

Paper: Pennington, Schoenholz & Ganguli 2017, Resurrecting the sigmoid in deep learning through dynamical isometry:
theory and practice, arXiv:1711.04735, section on the spectrum of deep networks; after its figures of singular values.
The setting, 10 layers of 200 units, is ours; theory takes the place of printed numbers.
Command: `python -m experiments pennington_spectrum` (about a minute on 2 cores).

J is from the inputs to the last hidden layer; inputs as many as units, weights scaled so that the mean eigenvalue is 1
(σ_w² = 1, ReLU: 2), no biases.

Finite width: E[tr(JJᵀ)²/n] / E[(tr JJᵀ/n)²] − 1, which divides by a network's own squared mean, is exactly 10.26, 0,
20.76 and 10.10 at 200 units, by recursion over the second moments of W B Wᵀ. Networks are compared with that to 5 %.
More eigenvalues are 0 than the half that free probability predicts for ReLU, since only as many are left as the layer
with the fewest active units has active units.

The density is that of infinite width. There one singular value of ten is above 1.58, .97 and 1.61 of the RMS. At 200
units the values that one of ten exceeds are a few percent lower (2 % linear, 6 % ReLU with Gaussian weights; twice that
at 100 units), as the density of ln s is flat there. Therefore the share above the predicted value is judged.

Expected: 10, 0, 20, 10 within 15 %; mean eigenvalues that grow by 1 a layer within 2 %; a share of .1 above the
density's 90 % quantile, within 5 % of it.
"""

from __future__ import annotations

import jax
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.ticker import MaxNLocator
from scipy.stats import binom, norm

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, row
from vgjax import figures
from vgjax.analysis import Estimate, estimate, interval
from vgjax.config import Config, Hypers
from vgjax.network.layer_names import layer_names
from vgjax.theory.jacobian import eigenvalue_density, eigenvalue_spread
from vgjax.training.probe import Network, probe

NAME = "pennington_spectrum"
TITLE = "Pennington et al. 2017: singular values of the Jacobian"
PAPER = "after Pennington et al. 2017, 1711.04735; infinite width"
EXACT = "exact at this width"
DENSITY = "after Pennington et al. 2017, 1711.04735; free probability"

WIDTH, DEPTH = 200, 10
CASES = {  # name → activation, initializer, share of active units
    "linear, Gaussian": ("linear", "mean_field", 1.0),
    "linear, orthogonal": ("linear", "orthogonal", 1.0),
    "ReLU, Gaussian": ("relu", "mean_field", 0.5),
    "ReLU, orthogonal": ("relu", "orthogonal", 0.5),
}
ISOMETRY = "linear, orthogonal"
SEEDS = {"smoke": 24, "default": 64, "full": 64}
EDGES = np.geomspace(0.01, 10, 31)  # of singular values over their RMS
TAIL = 0.1
ZERO = 1e-6  # singular values below this are rounding errors

# Fixed before the run.
SPREAD = Within(share=0.15)
SPREAD_AT_WIDTH = Within(share=0.05)
NO_SPREAD = Within(margin=1e-3)
GROWTH = Within(share=0.02)
ABOVE_QUANTILE = Within(share=0.05)
ZEROS = Within(margin=0.01)


def run(options: Options) -> xr.Dataset:
    """Squared singular values after every layer, measured and predicted.

    Returns:
      squared_mean and mean_square [case, seed, layer]: (tr JJᵀ/n)² and tr(JJᵀ)²/n; predicted and at_width [case,
      layer]: their ratio − 1, at infinite width and at WIDTH; share [case, seed, s]: density of ln s, s a network's
      singular values over their RMS, and expected [case, s]; zeros and above [case, seed]: shares of singular values
      that are 0, and that are above theory's `quantile` [case]; zeros_expected [case].
    """
    parts = [_measure_and_predict(name, SEEDS[options.size]) for name in CASES]
    return xr.concat(parts, xr.DataArray(list(CASES), dims="case", name="case"))


def jacobians(network: Network) -> jax.Array:
    """J of every hidden layer at the first input, [L, n, n]."""
    seen = jax.jacfwd(lambda x: network.seen(x[None]).activations)(network.inputs[0])
    return jax.numpy.stack([seen[name][0] for name in layer_names(len(network.program.config.hidden))])


def _measure_and_predict(name: str, seeds: int) -> xr.Dataset:
    """One case, in networks and in theory."""
    activation, initializer, active = CASES[name]
    orthogonal = initializer == "orthogonal"
    config = Config(hidden=(WIDTH,) * DEPTH, activation=activation, initializer=initializer)
    inputs = np.random.default_rng(0).standard_normal((1, WIDTH))
    found = probe(jacobians, config, Hypers(sigma_w=active**-0.5), seeds, inputs)[0].astype(np.float64)
    both = found @ np.swapaxes(found, 2, 3)
    singular = np.linalg.svd(found[:, -1], compute_uv=False)
    singular = singular / np.sqrt(np.mean(singular**2, axis=1, keepdims=True))
    at = np.sqrt(EDGES[:-1] * EDGES[1:])
    width = np.log(EDGES[1] / EDGES[0])
    share = np.stack([np.histogram(s, EDGES)[0] for s in singular]) / (WIDTH * width)
    alive = binom.sf(np.arange(WIDTH), WIDTH, active) ** DEPTH  # [k]: P(all layers have more than k active units)
    expected, quantile = _density(at, active, orthogonal)
    columns = {
        "squared_mean": (("seed", "layer"), (np.trace(both, axis1=2, axis2=3) / WIDTH) ** 2),
        "mean_square": (("seed", "layer"), np.sum(both**2, axis=(2, 3)) / WIDTH),
        "predicted": ("layer", eigenvalue_spread(DEPTH, active, orthogonal)),
        "at_width": ("layer", eigenvalue_spread(DEPTH, active, orthogonal, WIDTH)),
        "share": (("seed", "s"), share),
        "expected": ("s", expected),
        "zeros": ("seed", np.mean(singular < ZERO, axis=1)),
        "zeros_expected": 1 - alive.sum() / WIDTH,
        "above": ("seed", np.mean(singular > quantile, axis=1)),
        "quantile": quantile,
    }
    return xr.Dataset(columns, {"layer": np.arange(1, DEPTH + 1), "s": at})


def _density(at: np.ndarray, active: float, orthogonal: bool) -> tuple[np.ndarray, float]:
    """Density of ln s at the values `at`, s the singular values over their RMS; and the s that a share TAIL exceeds."""
    if active == 1 and orthogonal:
        return np.zeros(len(at)), 1.0  # all are 1
    logs = np.linspace(np.log(1e-3), np.log(30), 1000)
    x = np.exp(2 * logs)
    density = 2 * x * eigenvalue_density(x, DEPTH, active, orthogonal)
    cells = (density[1:] + density[:-1]) / 2 * np.diff(logs)
    above = np.append(np.cumsum(cells[::-1])[::-1], 0.0)
    return np.interp(np.log(at), logs, density), float(np.exp(np.interp(-TAIL, -above, logs)))


def check(data: xr.Dataset) -> list[Row]:
    """After the last layer: the variance, the mean, the share of zeros and the upper tail, against theory."""
    rows = []
    for name in CASES:
        one = data.sel(case=name)
        last = one.sel(layer=DEPTH)
        value, low, high = _spread(one).sel(layer=DEPTH).to_array().values.tolist()
        spread = Estimate(value, low, high, data.sizes["seed"])
        quantity = f"{name}: variance of JJᵀ's eigenvalues over their mean squared"
        within = NO_SPREAD if name == ISOMETRY else SPREAD
        rows.append(row(NAME, quantity, PAPER, spread, within, predicted=float(last["predicted"])))
        value, low, high, n = estimate(one["squared_mean"].values ** 0.5)
        growth = Estimate(value ** (1 / DEPTH), low ** (1 / DEPTH), high ** (1 / DEPTH), n)
        rows.append(row(NAME, f"{name}: growth of the mean eigenvalue per layer", PAPER, growth, GROWTH, predicted=1.0))
        if name == ISOMETRY:
            continue
        at_width = f"{quantity}, at {WIDTH} units"
        rows.append(row(NAME, at_width, EXACT, spread, SPREAD_AT_WIDTH, predicted=float(last["at_width"])))
        quantity = f"{name}: share of the singular values above {float(one['quantile']):.3g} of their RMS"
        rows.append(row(NAME, quantity, DENSITY, estimate(one["above"].values), ABOVE_QUANTILE, predicted=TAIL))
        expected, zeros = float(one["zeros_expected"]), estimate(one["zeros"].values)
        if expected > 0:
            rows.append(row(NAME, f"{name}: share of singular values 0", EXACT, zeros, ZEROS, predicted=expected))
    return rows


def _spread(data: xr.Dataset) -> xr.Dataset:
    """mean_square / squared_mean − 1, each averaged over networks, with its 95 % interval (delta method)."""
    squared_mean, mean_square = data["squared_mean"].mean("seed"), data["mean_square"].mean("seed")
    ratio = mean_square / squared_mean
    half = (
        norm.ppf(0.975)
        * ((data["mean_square"] - ratio * data["squared_mean"]) / squared_mean).std("seed", ddof=1)
        / data.sizes["seed"] ** 0.5
    )
    return xr.Dataset({"mean": ratio - 1, "low": ratio - 1 - half, "high": ratio - 1 + half})


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """The variance against depth, and the density of the singular values after the last layer."""
    figure, ((left, right),) = figures.panels(1, 2, width=3.9, height=3.4)
    spread, share = _spread(data), interval(data["share"])
    for which, name in enumerate(CASES):
        one = data.sel(case=name)
        left.plot(one["layer"], one["at_width"], color="0.6", linewidth=0.8, zorder=1)
        figures.theory_line(left, one["layer"], one["predicted"], which)
        figures.points(left, one["layer"], spread.sel(case=name), which, name)
        if name != ISOMETRY:
            figures.theory_line(right, one["s"], one["expected"], which)
            figures.points(right, one["s"], share.sel(case=name), which)
    left.set(xlabel="layer", ylabel="variance of JJᵀ's eigenvalues / mean²", title="spread over the layers")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(loc="upper left")
    right.set(xscale="log", xlabel="singular value of J / their RMS", ylabel="share per unit of its logarithm")
    right.set(title=f"singular values after {DEPTH} layers", ylim=(0, 0.15))
    figures.theory_line(right, [], [], 6, "theory, infinite width")
    right.plot([], [], color="0.6", linewidth=0.8, label=f"left: theory, {WIDTH} units")
    right.legend(loc="upper right")
    sentence = (
        "Jacobians of networks of 200 units at initialization, from the input to every layer. Left: the variance of "
        "the eigenvalues of JJᵀ grows by 1 a layer for linear Gaussian and for ReLU orthogonal networks (which "
        "coincide), by 2 for ReLU Gaussian ones, and stays 0 for linear orthogonal ones. Right: their singular values "
        "after 10 layers, those that are 0 (half of them for ReLU) and those of linear orthogonal networks (all 1) "
        "left out. Points: means over networks with 95 % intervals; dashed: theory at infinite width; grey: exact at "
        "200 units."
    )
    tables = [
        xr.merge([found, data[predicted].rename("predicted")])
        .rename({at: "at"})
        .to_dataframe()
        .reset_index()
        .assign(what=what)
        for what, found, predicted, at in (
            ("spread", spread, "predicted", "layer"),
            ("density", share, "expected", "s"),
        )
    ]
    return [Picture(NAME, figure, sentence, pd.concat(tables).round(5))]
