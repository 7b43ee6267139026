"""Gradients explode or vanish exponentially with depth, by the factor χ₁ a layer.

Claim: in a random tanh network log‖∂E/∂W‖² is a straight line over the layers. Towards the input it falls in the
ordered phase (σ_w² below its critical value), rises in the chaotic phase, and is level between them; its slope is
ln χ₁.

Paper: Schoenholz, Gilmer, Ganguli & Sohl-Dickstein 2016, Deep Information Propagation, arXiv:1611.01232, section on
back-propagation, after its figure of gradient norms against layer: tanh, 240 layers of 300 units, σ_b² = .05, σ_w² from
1 to 4. The setting is from memory of the paper; there are no printed numbers to compare with, and theory takes their
place.
Command: `python -m experiments schoenholz_gradients` (about half a minute on 2 cores, at the paper's size).

Substitutes: one Gaussian example a network stands in for MNIST, as theory uses only the length of an input; the loss is
softmax cross-entropy with ten classes.

Expected: χ₁ = .759, .880, 1, 1.048, 1.134, 1.209, 1.342 at σ_w² = 1, 1.3, 1.761, 2, 2.5, 3, 4. At 300 units the slope
is .005 to .01 below ln χ₁. This is not an error, and has two causes: the mean of a logarithm is less than the logarithm
of the mean, and δ on its way back meets the same weights that the signal met on its way forward. Therefore χ₁ is judged
to ± 2 %, and the slope, where it is far from 0, to ± 5 % of that of networks drawn at this width (which have the first
effect).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, row
from vgjax import figures, theory
from vgjax.analysis import Estimate, estimate, geometric_estimate, interval
from vgjax.config import Config, Hypers
from vgjax.statistics.weights import norm_statistics
from vgjax.theory.ensemble import draw_networks
from vgjax.theory.profiles import predicted_profile
from vgjax.training.probe import Network, probe

NAME = "schoenholz_gradients"
TITLE = "Schoenholz et al. 2016: gradients grow or fall by χ₁ a layer"
PAPER = "after Schoenholz et al. 2016, 1611.01232; closed form"
DRAWN = "after Schoenholz et al. 2016, 1611.01232; drawn at this width"

CLASSES = 10
SIGMA_B2 = 0.05
CRITICAL = 1.76095  # where χ₁ = 1
VARIANCES = (1.0, 1.3, CRITICAL, 2.0, 2.5, 3.0, 4.0)
MARGIN = 20  # layers left out at each end, where lengths have not settled


class Size(NamedTuple):
    """How much is simulated."""

    depth: int  # hidden layers
    width: int
    seeds: int
    draws: int  # networks drawn for theory's band
    variances: tuple[float, ...]  # σ_w²


FULL_SIZE = Size(240, 300, 20, 100, VARIANCES)
SIZES = {"smoke": Size(50, 30, 2, 4, (1.0, CRITICAL, 4.0)), "default": FULL_SIZE, "full": FULL_SIZE}

# Fixed before the run.
CHI1 = Within(share=0.02)
SLOPE = Within(share=0.05)
STEEP = 0.1  # |ln χ₁| from which on the slope is judged too
STRAIGHT = Within(low=0.99)


def run(options: Options) -> xr.Dataset:
    """The gradient of every layer at step 0, measured and predicted.

    Returns:
      measured [sigma_w2, seed, layer], predicted [sigma_w2, layer] and drawn [sigma_w2, draw, layer]: log₁₀ ‖∂E/∂W‖²;
      chi1 [sigma_w2], and its curve [at].
    """
    size = SIZES[options.size]
    config = Config(hidden=(size.width,) * size.depth, activation="tanh", initializer="mean_field")
    settings = [Hypers(sigma_w=variance**0.5, sigma_b=SIGMA_B2**0.5) for variance in size.variances]
    inputs = np.random.default_rng(0).standard_normal((1, size.width))
    widths = (size.width, *config.hidden, CLASSES)
    weights = np.log10(np.multiply(widths[:-1], widths[1:]))
    log_rms = probe(weight_gradient, config, settings, size.seeds, inputs, classes=CLASSES)
    predicted = [_predicted(config, setting, inputs) for setting in settings]
    drawn = np.stack([_drawn(config, setting, inputs, size.draws) for setting in settings])
    at = np.linspace(0.9, 4.1, 3 if options.smoke else 65)
    over = ("sigma_w2", "layer")
    return xr.Dataset(
        {
            "measured": (("sigma_w2", "seed", "layer"), 2 * log_rms.astype(np.float64) + weights),
            "predicted": (over, 2 * np.array(predicted) + weights),
            "drawn": (("sigma_w2", "draw", "layer"), 2 * drawn + weights),
            "chi1": ("sigma_w2", _chi1(size.variances)),
            "curve": ("at", _chi1(at)),
        },
        {"sigma_w2": list(size.variances), "layer": np.arange(1, len(widths)), "at": at},
    )


def weight_gradient(network: Network) -> jax.Array:
    """log₁₀ RMS of every layer's weight gradient."""
    return norm_statistics(network.step().gradients)["gradient_log10_rms"]


def _chi1(variances: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.array([theory.fixed_point("tanh", float(variance), SIGMA_B2).chi1 for variance in variances])


def _predicted(config: Config, hypers: Hypers, inputs: np.ndarray) -> np.ndarray:
    """log₁₀ RMS at infinite width."""
    widths = (inputs.shape[1], *config.hidden, CLASSES)
    profile = predicted_profile(
        inputs, [0], widths, config.activation, config.initializer, None, hypers.sigma_w, hypers.sigma_b
    )
    return np.log10(profile.gradient_rms)


def _drawn(config: Config, hypers: Hypers, inputs: np.ndarray, n: int) -> np.ndarray:
    """log₁₀ RMS of networks drawn at this width, [n, L]."""
    draws = draw_networks(config, hypers, np.repeat(inputs[None], n, 0), np.zeros((n, 1), np.int32), CLASSES, 1)
    return np.log10(draws.gradient_rms)


def _settled(values: xr.DataArray) -> xr.DataArray:
    return values.sel(layer=slice(MARGIN, values.sizes["layer"] - MARGIN - 1))


def _growth(log10_squares: xr.DataArray) -> xr.DataArray:
    """Slope of ln‖∂E/∂W‖² per layer going back, over the settled layers."""
    line = _settled(log10_squares).polyfit("layer", 1)
    return -np.log(10) * line["polyfit_coefficients"].sel(degree=1, drop=True)


def check(data: xr.Dataset) -> list[Row]:
    """The growth per layer against χ₁; where it is far from 1, also its slope and how straight the line is."""
    rows, straight = [], []
    growth, drawn = _growth(data["measured"]), _growth(data["drawn"])
    for variance in data["sigma_w2"].values:
        chi1 = float(data["chi1"].sel(sigma_w2=variance))
        slope = estimate(growth.sel(sigma_w2=variance).values)
        factor = geometric_estimate(np.exp(growth.sel(sigma_w2=variance).values))
        at = f"σ_w² = {variance:.4g}"
        rows.append(row(NAME, f"{at}: growth of ‖∂E/∂W‖² per layer going back", PAPER, factor, CHI1, predicted=chi1))
        if abs(np.log(chi1)) > STEEP:
            quantity, predicted = f"{at}: slope of ln‖∂E/∂W‖² per layer going back", drawn.sel(sigma_w2=variance).mean()
            rows.append(row(NAME, quantity, DRAWN, slope, SLOPE, predicted=float(predicted)))
            settled = _settled(data["measured"]).sel(sigma_w2=variance).mean("seed")
            straight.append(np.corrcoef(settled["layer"].values, settled.values)[0, 1] ** 2)
    least = Estimate(float(min(straight)), np.nan, np.nan, growth.sizes["seed"])
    quantity = "share of its variance that a straight line explains, the least of these"
    return [*rows, row(NAME, quantity, PAPER, least, STRAIGHT)]


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """Gradient against layer, and the growth per layer against σ_w²."""
    figure, ((left, right),) = figures.panels(1, 2, width=3.9, height=3.4)
    every = slice(9, None, 20)
    measured = interval(data["measured"])
    low, high = (data["drawn"].quantile(q, "draw").drop_vars("quantile") for q in (0.025, 0.975))
    ends = {}
    for which, variance in enumerate(data["sigma_w2"].values):
        one, theirs = data.sel(sigma_w2=variance), measured.sel(sigma_w2=variance)
        figures.theory_band(left, one["layer"], 10 ** low.sel(sigma_w2=variance), 10 ** high.sel(sigma_w2=variance))
        figures.theory_line(left, one["layer"], 10 ** one["predicted"], which)
        figures.points(left, one["layer"][every], 10 ** theirs.isel(layer=every), which)
        ends[f"$\\sigma_w^2$ = {variance:.4g}"] = (10 ** float(theirs["mean"][0]), which)
    left.set(yscale="log", xlabel="layer", ylabel="‖∂E/∂W‖²  (loss² / weight²)", title="gradient of every layer")
    left.set_yticks(10.0 ** np.arange(-30, 31, 10))
    figures.label_ends(left, 1, ends)
    growth = interval(xr.ufuncs.exp(_growth(data["measured"])))
    figures.theory_line(right, data["at"], data["curve"], 6, "theory, infinite width (right: χ₁)")
    for which, variance in enumerate(data["sigma_w2"].values):
        figures.points(right, variance, growth.sel(sigma_w2=variance), which)
    right.axhline(1, color="0.5", linewidth=0.8)
    right.set(
        xlabel="variance of the weights, $\\sigma_w^2$ (dimensionless)",
        ylabel="growth of ‖∂E/∂W‖² per layer going back",
    )
    right.set_title("its growth per layer")
    right.plot([], [], "o", color="0.3", label="simulation, mean and 95 % interval")
    figures.theory_band(right, [], [], [], "left: theory, 95 % of networks")
    right.legend(loc="lower right")
    sentence = (
        "Every layer's squared gradient norm in tanh networks of 240 layers at initialization (points: means of the "
        "logarithm over networks with 95 % intervals) falls on straight lines towards the input where σ_w² is below "
        "1.761, and rises above it. Dashed: theory at infinite width; grey: where it expects 95 % of single networks "
        "of 300 units. Right: the growth per layer is χ₁."
    )
    table = measured.assign(predicted=data["predicted"], drawn_low=low, drawn_high=high)
    return [Picture(NAME, figure, sentence, table.to_dataframe().reset_index().round(4))]
