"""Weights of variance 1/(3n) make signals and back-propagated gradients shrink layer by layer; normalised ones do not.

Claim: near the linear regime the variance of activations (going up) and of ∂Cost/∂z (going down) is multiplied by
n·Var(W) a layer: by 1/3 for the standard W ~ U(±1/√n), by 1 for the normalised W ~ U(±√(6/(n_in + n_out))). The two
trends cancel in the gradients of the weights, whose variance is the same in all layers.

Paper: Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, AISTATS, Figs 6
to 8 (histograms of activations, back-propagated gradients and weight gradients, layer by layer), and its formulas for
the linear regime: tanh, 5 hidden layers of 1000 units.
Command: `python -m experiments glorot_histograms` (about 20 s on 2 cores, at the paper's size).

Substitutes: MNIST (pixels from 0 to 1) stands in for Shapeset-3×2, which is not public; one batch of ten examples, and
gradients summed over it. The paper's standard initializer goes here by MXNet's name for it, Xavier of magnitude 1.
Histograms are of magnitudes, by factors of two: layers that differ only in variance have the same curve, shifted.

Theory: the factors 1/3 and 1 ignore tanh's slope, which on MNIST takes 2 % off a layer of standard weights and 12 % off
a layer of normalised weights; `profiles` includes it. Given a layer's inputs, its pre-activations are Gaussian; given
the signals on the other side, so are δ and the weight gradients. All histograms are therefore mixtures of Gaussians of
known variances. The exception is δ of the last hidden layer: it adds up ten weights, and the weight of the right class
counts nine times as much as the others. It is nearly uniform, and is sampled.

Expected per layer going back: Var[∂Cost/∂z] × .325 (standard) and × .882 (normalised), Var[∂Cost/∂W] × 1.000 and
× 1.005 (layers 2 to 5, which have as many inputs); RMS within 3 % and shares of the histograms within .01 of theory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.ticker import PercentFormatter
from scipy.special import erf, softmax

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, dataset_or_stand_in, row
from vgjax import figures
from vgjax.analysis import Estimate, geometric_estimate, interval, magnitude_histogram
from vgjax.config import Config, Hypers
from vgjax.network.layer_names import groups, weight_groups
from vgjax.statistics import histograms, weights
from vgjax.theory import profiles
from vgjax.training.probe import Network, per_layer, probe

NAME = "glorot_histograms"
TITLE = "Glorot & Bengio 2010: signals and gradients, layer by layer"
PAPER = "Glorot & Bengio 2010, linear regime"
THEORY = "Glorot & Bengio 2010, Figs 6–8; mean-field theory with tanh's slope"

DEPTH, WIDTH, EXAMPLES = 5, 1000, 10
INITIALIZERS = {"standard": "mxnet_xavier(factor_type=in, magnitude=1)", "normalised": "glorot_uniform"}
LINEAR = {"standard": 1 / 3, "normalised": 1.0}  # n·Var(W)
KINDS = {  # kind of histogram → label of its axis
    "activation": "|activation|  (dimensionless)",
    "delta": "|∂Cost/∂z|  (loss / unit of z)",
    "gradient": "|∂Cost/∂W|  (loss / unit of weight)",
}
XLIMITS = {"activation": (2e-4, 1), "delta": (2e-5, 0.2), "gradient": (2e-5, 0.4)}
OCTAVES = np.arange(-22, 1)  # 2^e ≤ |x| < 2^(e + 1)
DRAWS = 8000
SEEDS = {"smoke": 6, "default": 20, "full": 20}

# Fixed before the run.
GROWTH = Within(share=0.03)
WITHOUT_SLOPE = Within(share=0.15)
DEPARTURE = Within(high=0.03)
SHARES = Within(high=0.01)


def run(options: Options) -> xr.Dataset:
    """Histograms and RMS of every hidden layer, measured and predicted.

    Returns:
      share [initializer, kind, seed, layer, octave] of the numbers in each octave of magnitude, and rms without
      octaves; share_predicted [initializer, kind, layer, start], of the octave that starts at 2^start, and
      rms_predicted.
    """
    data, note = dataset_or_stand_in("mnist", options)
    raw = np.asarray(data.train_inputs[:EXAMPLES], np.float64).reshape(EXAMPLES, -1)
    inputs, labels = raw / raw.max(), np.asarray(data.train_labels[:EXAMPLES])
    parts = [
        _measure_and_predict(initializer, inputs, labels, data.classes, SEEDS[options.size])
        for initializer in INITIALIZERS.values()
    ]
    both = xr.concat(parts, xr.DataArray(list(INITIALIZERS), dims="initializer", name="initializer"))
    return both.assign_attrs(notes=[note] if note else [], dataset=data.name)


def histograms_and_rms(network: Network) -> tuple[jax.Array, jax.Array]:
    """Histograms [kinds, layers, bins] and RMS [kinds, layers] of all layers."""
    view = network.step()
    signals = [groups(view.seen.activations), groups(view.deltas), weight_groups(view.gradients)]
    rms = [per_layer(weights.rms, view.seen.activations), per_layer(weights.rms, view.deltas)]
    rms.append(weights.norm_statistics(view.gradients)["gradient_rms"])
    return jnp.stack([histograms.histograms(one) for one in signals]), jnp.stack(rms)


def _measure_and_predict(
    initializer: str, inputs: np.ndarray, labels: np.ndarray, classes: int, seeds: int
) -> xr.Dataset:
    config = Config(hidden=(WIDTH,) * DEPTH, activation="tanh", initializer=initializer, reduction="sum")
    histograms, rms = (
        np.moveaxis(x[0, ..., :DEPTH] if x.ndim == 4 else x[0, ..., :DEPTH, :], 0, 1)
        for x in probe(histograms_and_rms, config, Hypers(), seeds, inputs, labels, classes)
    )
    over = ("kind", "seed", "layer")
    share = magnitude_histogram(xr.Dataset({"counts": ((*over, "bin"), histograms)}), "counts")
    share = share.swap_dims(octave="exponent").sel(exponent=OCTAVES).rename(exponent="octave")
    widths = (inputs.shape[1], *config.hidden, classes)
    profile = profiles.predicted_profile(inputs, labels, widths, "tanh", initializer, reduction="sum")
    start = np.arange(OCTAVES[0], OCTAVES[-1] + 0.25, 0.25)
    return xr.Dataset(
        {
            "share": share,
            "rms": (over, rms.astype(np.float64)),
            "rms_predicted": (("kind", "layer"), np.array(profile)[:, :DEPTH]),
            "share_predicted": (
                ("kind", "layer", "start"),
                _predicted_shares(initializer, inputs, labels, widths, 2.0**start),
            ),
        },
        {"kind": list(KINDS), "layer": np.arange(1, DEPTH + 1), "start": start},
    )


def _predicted_shares(
    initializer: str, inputs: np.ndarray, labels: np.ndarray, widths: tuple[int, ...], x: np.ndarray
) -> np.ndarray:
    """Predicted share of numbers with magnitude from x to 2x, [kinds, layers, len(x)]."""
    variances = profiles.layer_variances(widths, initializer)
    pairs = profiles.pair_profile(inputs, "tanh", variances)
    deltas = profiles.delta_products(labels, pairs, variances, widths[-1])
    rng, found = np.random.default_rng(0), np.zeros((len(KINDS), DEPTH, len(x)))
    incoming = inputs  # of the layer, [EXAMPLES, units]: pixels in layer 1, then samples
    for layer in range(DEPTH):
        delta, length = deltas[layer] / widths[layer + 1], np.diag(pairs.preactivation[layer])
        z = rng.multivariate_normal(np.zeros(EXAMPLES), pairs.preactivation[layer], DRAWS).T
        slope = 1 - np.tanh(z) ** 2
        of_delta = np.diag(delta / pairs.slope[layer])[:, None] * slope**2
        of_gradient = np.einsum("aj,ab,bj->j", incoming, delta, incoming)
        with np.errstate(divide="ignore"):  # where a pixel is 0 in the whole batch
            ends = [np.arctanh(np.minimum(end, 1)) for end in (x, 2 * x)]
            found[0, layer] = _probability_below(ends[1], length) - _probability_below(ends[0], length)
            found[1, layer] = _probability_below(2 * x, of_delta) - _probability_below(x, of_delta)
            found[2, layer] = _probability_below(2 * x, of_gradient) - _probability_below(x, of_gradient)
        incoming = np.tanh(z)
    limit = np.sqrt(3 * variances[-1] / WIDTH)
    last = np.sort(
        np.abs(slope * _last_delta(labels, np.diag(pairs.preactivation[-1]), widths[-1], limit, rng)), axis=None
    )
    found[1, -1] = np.diff(np.searchsorted(last, [x, 2 * x]), axis=0)[0] / last.size
    return found


def _last_delta(labels: np.ndarray, q: np.ndarray, classes: int, limit: float, rng: np.random.Generator) -> np.ndarray:
    """Samples of Wᵀ(p − y) below the logits, [EXAMPLES, DRAWS]: W ~ U(±limit) has too few weights for a Gaussian."""
    logits = np.sqrt(q)[:, None, None] * rng.standard_normal((len(q), DRAWS, classes))
    error = softmax(logits, axis=-1) - np.eye(classes)[labels][:, None]
    return np.sum(rng.uniform(-limit, limit, error.shape) * error, axis=-1)


def _probability_below(x: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """P(|y| < x) for a mixture of Gaussians of these variances; a variance of 0 adds a probability of 1."""
    return np.array([np.mean(erf(one / np.sqrt(2 * variances))) for one in x])


def check(data: xr.Dataset) -> list[Row]:
    """The factor of the variances from layer to layer; RMS and histogram of every layer."""
    rows = []
    names = {"delta": "Var[∂Cost/∂z]", "gradient": "Var[∂Cost/∂W]", "activation": "Var[activation]"}
    for which, linear in LINEAR.items():
        one, n = data.sel(initializer=which), data.sizes["seed"]
        for kind, first, published in (("delta", 1, linear), ("gradient", 2, 1.0)):
            measured = geometric_estimate(_growth(one["rms"].sel(kind=kind), first).values)
            predicted = float(_growth(one["rms_predicted"].sel(kind=kind), first))
            quantity = f"{which}: {names[kind]}, factor per layer going back from {DEPTH} to {first}"
            rows.append(row(NAME, quantity, THEORY, measured, GROWTH, predicted=predicted))
            quantity = f"{quantity}, without tanh's slope"
            rows.append(row(NAME, quantity, PAPER, measured, WITHOUT_SLOPE, published=published))
        departures = {
            "relative departure of the RMS": (one["rms"].mean("seed") / one["rms_predicted"] - 1, DEPARTURE),
            "departure of the shares of the histogram": (_departure(one), SHARES),
        }
        for name, (departure, within) in departures.items():
            for kind in KINDS:
                rms = Estimate(float((departure.sel(kind=kind) ** 2).mean() ** 0.5), np.nan, np.nan, n)
                quantity = f"{which}: {names[kind][4:-1]}, {name} from theory, RMS over layers"
                rows.append(row(NAME, quantity, THEORY, rms, within))
    return rows


def _growth(rms: xr.DataArray, first: int) -> xr.DataArray:
    """Factor of the variance per layer going back, from the last hidden layer to layer `first`."""
    return (rms.sel(layer=first) / rms.sel(layer=DEPTH)) ** (2 / (DEPTH - first))


def _departure(data: xr.Dataset) -> xr.DataArray:
    """Measured minus predicted shares, where either is above 1 %."""
    measured = data["share"].mean("seed")
    predicted = data["share_predicted"].sel(start=data["octave"].values.astype(float)).rename(start="octave")
    return (measured - predicted).where(np.maximum(measured, predicted) > 0.01)


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """Histograms: a panel for each initializer and kind, a curve for each layer."""
    figure, grid = figures.panels(2, len(KINDS), width=3.2, height=2.5, sharex="col", sharey=True)
    share = interval(data["share"])
    shown = share["mean"] > 0.02
    for line, which in zip(grid, INITIALIZERS, strict=True):
        for axes, (kind, name) in zip(line, KINDS.items(), strict=True):
            for i, layer in enumerate(data["layer"].values):
                where = {"initializer": which, "kind": kind, "layer": layer}
                there = data["octave"][shown.sel(where)]
                figures.theory_line(axes, 2 ** (data["start"] + 0.5), data["share_predicted"].sel(where), i)
                figures.points(axes, 2.0 ** (there + 0.5), share.sel(where).sel(octave=there), i, f"layer {layer}")
            axes.set(xscale="log", title=f"{which} initialization", xlabel=name, xlim=XLIMITS[kind])
            axes.set_ylabel("share per factor of 2")
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.xaxis.set_tick_params(labelbottom=True)
    grid[0, 0].plot([], [], "--", color="0.3", label="theory")
    grid[0, 0].legend(loc="upper left")
    sentence = (
        "Magnitudes of activations, back-propagated gradients and weight gradients in tanh networks of 5 × 1000 units "
        f"at initialization, on {EXAMPLES} examples of {data.attrs['dataset']}. Standard weights (above): signals "
        "shrink from layer to layer upwards and back-propagated gradients downwards, yet weight gradients are alike. "
        "Normalised weights (below): all are nearly alike. Layer 1 has zeros besides, where a pixel is blank in all "
        "examples. Points: means over networks with 95 % intervals; dashed: theory."
    )
    predicted = data["share_predicted"].sel(start=data["octave"].values.astype(float)).rename(start="octave")
    table = share.assign(predicted=predicted).where(shown, drop=True).to_dataframe().dropna().reset_index()
    return [Picture(NAME, figure, sentence, table.round(5))]
