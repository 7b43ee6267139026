"""Batch norm makes the gradients of a deep network explode, by a factor that only the activation and batch size decide.

Claim: in a random network with batch norm before each activation, ‖∂loss/∂z‖² grows exponentially towards the input
whatever the weights' variance: per layer by E[φ′(u)²]/Var[φ(u)], u ~ N(0, 1), for large batches, which is π/(π − 1) for
ReLU. For linear networks of batch size B it grows by (B − 2)/(B − 3).

Paper: Yang, Pennington, Rao, Sohl-Dickstein & Schoenholz 2019, A Mean Field Theory of Batch Normalization,
arXiv:1902.08129: π/(π − 1) and (B − 2)/(B − 3) are theirs. The numbers for the other activations and for finite batches
are derived from the same fixed point (`theory.batch_norm_gradient_gain`, `theory.finite_batch_norm_gradient_gain`).
Command: `python -m experiments yang_batch_norm` (about a minute on 2 cores; `--full` from 20 networks instead of 5).

Train mode, the gradient through the batch's statistics, ε → 0, 30 layers of 1000 units. Layers near the input, where
the batch's correlations have not settled, and near the output are left out. Inputs are independent Gaussians instead of
images, as the theory needs a batch of full rank. In layers of finite width examples slowly lose their independence,
which is why B is far below the width and the networks are not deeper.

Expected at B = 128: ReLU 1.481 (limit 1.467), leaky ReLU .2 1.255, tanh 1.185, ELU 1.088, SELU 1.080, sigmoid 1.041,
linear 1.008; at B = 8: ReLU 1.793, linear 1.2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, row
from vgjax import figures, theory
from vgjax.analysis import geometric_estimate, interval
from vgjax.config import Config, Hypers
from vgjax.statistics.weights import rms
from vgjax.training.probe import Network, per_layer, probe

NAME = "yang_batch_norm"
TITLE = "Yang et al. 2019: batch norm makes gradients explode"
PAPER = "Yang et al. 2019, 1902.08129"
DERIVED = "after Yang et al. 2019, 1902.08129; their fixed point at this batch size"

DEPTH, WIDTH, CLASSES = 30, 1000, 10
ACTIVATIONS = ("relu", "leaky_relu(0.2)", "tanh", "elu", "selu", "sigmoid", "linear")
BATCH = 128  # batch size at which the activations are compared
BATCHES = (8, 16, 32)  # further batch sizes, for the activations of BY_BATCH
BY_BATCH = ("relu", "linear")
SEEDS = {"smoke": 3, "default": 5, "full": 20}
SETTLED = (6, 26)  # first and last layer between which the growth is measured
RELU = np.pi / (np.pi - 1)

# Fixed before the run.
GAIN = Within(share=0.04)


def run(options: Options) -> xr.Dataset:
    """δ of every layer at step 0, and its predicted growth per layer.

    Returns:
      log_delta [case, seed, layer]: ln ‖∂loss/∂z‖² over the batch; its predicted growth per layer, finite [case] and
      limit [case]; curve [shown, at] of the finite one; a case is an activation at a batch size.
    """
    smoke = options.smoke
    width = 300 if smoke else WIDTH
    cases = [(name, BATCH) for name in ACTIVATIONS] + [(name, size) for name in BY_BATCH for size in BATCHES]
    cases = [("relu", 32), ("linear", 8)] if smoke else cases
    at = np.unique(np.geomspace(6, 2 * BATCH, 5 if smoke else 25).astype(int))
    names, sizes = zip(*cases, strict=True)
    over = ("case", "seed", "layer")
    found = [_log_delta(name, size, width, SEEDS[options.size]) for name, size in cases]
    curve = [[theory.finite_batch_norm_gradient_gain(name, int(size)) for size in at] for name in BY_BATCH]
    return xr.Dataset(
        {
            "log_delta": (over, np.stack(found)),
            "finite": ("case", [theory.finite_batch_norm_gradient_gain(name, size) for name, size in cases]),
            "limit": ("case", [theory.batch_norm_gradient_gain(name) for name in names]),
            "curve": (("shown", "at"), np.array(curve)),
        },
        {
            "phi": ("case", list(names)),
            "batch": ("case", list(sizes)),
            "layer": np.arange(1, DEPTH + 1),
            "shown": list(BY_BATCH),
            "at": at,
        },
    )


def log_squared_delta(network: Network) -> jax.Array:
    """ln ‖δ‖² of every layer, up to a constant that all hidden layers share."""
    return per_layer(lambda d: 2 * jnp.log(rms(d)), network.step().deltas)


def _log_delta(activation: str, batch_size: int, width: int, seeds: int) -> np.ndarray:
    """ln ‖δ‖² of the hidden layers, [seed, layer]."""
    config = Config(
        hidden=(width,) * DEPTH, activation=activation, initializer="mean_field", norm="batch", norm_epsilon=1e-12
    )
    inputs = np.random.default_rng(0).standard_normal((batch_size, width))
    labels = np.arange(batch_size) % CLASSES
    return probe(log_squared_delta, config, Hypers(), seeds, inputs, labels, CLASSES)[0, :, :DEPTH].astype(np.float64)


def _growth(log_delta: xr.DataArray) -> xr.DataArray:
    """Growth of ‖δ‖² per layer going back, over the settled layers."""
    first, last = SETTLED
    return xr.ufuncs.exp((log_delta.sel(layer=first) - log_delta.sel(layer=last)) / (last - first))


def check(data: xr.Dataset) -> list[Row]:
    """The growth of each case, against the paper's formula (for ReLU its limit) or, without one, its fixed point."""
    rows = []
    growth = _growth(data["log_delta"])
    for case in range(data.sizes["case"]):
        name, size = str(data["phi"].values[case]), int(data["batch"].values[case])
        published = {"linear": (size - 2) / (size - 3), "relu": RELU if size == BATCH else None}.get(name)
        quantity = f"{name}, batches of {size}: growth of ‖∂loss/∂z‖² per layer going back"
        gain, predicted = geometric_estimate(growth.isel(case=case).values), float(data["finite"][case])
        source = PAPER if published else DERIVED
        rows.append(row(NAME, quantity, source, gain, GAIN, published=published, predicted=predicted))
    return rows


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """δ against layer for all activations, and its growth against the batch size for two."""
    figure, ((left, right),) = figures.panels(1, 2, width=4.2, height=3.4)
    anchor, growth = SETTLED[1], interval(_growth(data["log_delta"]))
    _plot_layers(left, data, anchor)
    _plot_batch_sizes(right, data, growth)
    sentence = (
        f"Gradients of networks with batch norm before the activation, {DEPTH} layers of {WIDTH} units, at "
        "initialization: going back they grow by a factor per layer that depends on the activation (left) and the "
        "batch size (right) alone. Points: geometric means over networks with 95 % intervals; dashed: theory, on the "
        f"left from layer {anchor} on."
    )
    table = growth.assign(finite=data["finite"], limit=data["limit"])
    return [Picture(NAME, figure, sentence, table.to_dataframe().reset_index(drop=True).round(5))]


def _plot_layers(axes: Axes, data: xr.Dataset, anchor: int) -> None:
    """‖δ‖² of every layer over that of the anchor layer, at the largest batch size."""
    measured = xr.ufuncs.exp(interval(data["log_delta"] - data["log_delta"].sel(layer=anchor)))
    largest = int(data["batch"].max())
    shown = [2, *range(SETTLED[0], DEPTH, 4), DEPTH]
    layers = data["layer"].sel(layer=slice(2, DEPTH))
    for colour, case in enumerate(np.flatnonzero(data["batch"] == largest)):
        gain = data["finite"][case].values
        label = f"{data['phi'].values[case]}, {float(gain):.3f}"
        figures.theory_line(axes, layers, gain ** (anchor - layers), colour)
        figures.points(axes, shown, measured.isel(case=case).sel(layer=shown), colour, label)
    axes.set(yscale="log", xlabel="layer", ylabel=f"‖∂loss/∂z‖² / that of layer {anchor}")
    axes.set_title(f"gradients, batches of {largest}")
    axes.legend(title="growth per layer\nin theory", title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _plot_batch_sizes(axes: Axes, data: xr.Dataset, growth: xr.Dataset) -> None:
    """The growth per layer against the batch size, of the activations in BY_BATCH."""
    for which, name in enumerate(BY_BATCH):
        cases = np.flatnonzero(data["phi"] == name)
        colour = {"relu": 0, "linear": len(ACTIVATIONS) - 1}[name]
        figures.theory_line(axes, data["at"], data["curve"][which], colour)
        figures.points(axes, data["batch"][cases], growth.isel(case=cases), colour)
        axes.axhline(float(data["limit"][cases[0]]), color="0.5", linewidth=0.8, zorder=1)
        text = {"relu": "ReLU", "linear": "linear: (B − 2)/(B − 3)"}[name]
        axes.text(20, float(np.interp(20, data["at"], data["curve"][which])) + 0.02, text, color=f"C{colour}")
    axes.text(260, RELU - 0.012, "π/(π − 1)", ha="right", va="top", fontsize=8, color="0.3")
    axes.set(
        xscale="log",
        xlabel="batch size B (examples)",
        ylabel="growth of ‖∂loss/∂z‖² per layer going back",
        title="growth, by batch size",
    )
    axes.xaxis.set_major_locator(FixedLocator([8, 16, 32, 64, 128, 256]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.plot([], [], "o", color="0.3", label="simulation, mean and 95 % interval")
    figures.theory_line(axes, [], [], 6, "theory")
    axes.plot([], [], color="0.5", linewidth=0.8, label="its limit for large batches")
    axes.legend(loc=(0.13, 0.19))
