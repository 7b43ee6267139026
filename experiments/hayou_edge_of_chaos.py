"""At the edge of chaos signals become alike by a power of depth, and off it exponentially.

Claim: let c be the correlation of two signals. Off the edge of chaos 1 − c tends to its fixed point exponentially over
the layers, as exp(−l/ξ_c). On the edge it falls as 9π²/(2l²) with ReLU, and as 2/(f''(1) l) with activations without a
kink, where f is the correlation map and f''(1) = σ_w² q E[φ''(√q z)²].

Paper: Hayou, Doucet & Rousseau 2019, On the impact of the activation function on deep neural networks training,
arXiv:1902.06853, sections on the edge of chaos, after its figures of correlation against depth. Closed form: near c = 1
the map is c + (2√2/3π)(1 − c)^{3/2} with ReLU and c + f''(1)(1 − c)²/2 without a kink, which gives dγ/dl of γ = 1 − c.
Command: `python -m experiments hayou_edge_of_chaos` (about 40 s on 2 cores).

Substitutes: pairs of vectors that are uncorrelated in the first layer; tanh and ELU stand for activations without a
kink. Swish, which the paper favours, is not among them. At σ_b² = .05 its fixed point on the edge repels lengths
(∂q'/∂q = 1.10; still 1.004 at σ_b² = .5), so that networks of finite width leave it, whatever correlations do.

Expected: the map, applied up to layer 10 000, has log–log slopes −2 and −1 and these coefficients, to 5 %. The next
order is smaller by ln l/l (tanh, ReLU), and for ELU, whose φ'' jumps, by l^(−1/2): 4 % even there. Networks of 500
units are 50 layers deep, where the asymptotes are still far, so they are compared with the map itself. Among single
networks ln(1 − c) spreads by .4 there, hence 100 of them. One row differs because its layers were chosen badly: in the
chaotic phase noise hides the signal of networks from layer 20 on, where the approach is not yet exponential. Over
layers 5 to 20 the map itself has the depth scale 10.3, not ξ_c = 11.8, and networks agree with it (each setting's last
row).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, row
from vgjax import figures, theory
from vgjax.analysis import Estimate, estimate, interval
from vgjax.config import Config, Hypers
from vgjax.training.probe import Network, per_layer, probe

NAME = "hayou_edge_of_chaos"
TITLE = "Hayou et al. 2019: at the edge of chaos correlations converge by a power of depth"
PAPER = "after Hayou et al. 2019, 1902.06853; closed form"
MAP = "after Hayou et al. 2019, 1902.06853; correlation map"

WIDTH = 500
DEPTH = {"smoke": 25, "default": 50, "full": 50}
SEEDS = {"smoke": 12, "default": 100, "full": 100}
MAP_LAYERS = {"smoke": 3000, "default": 10_000, "full": 10_000}  # how far the map is applied
SHOWN_LAYERS = 30  # layers that the panel off the edge shows
SIGMA_B2 = 0.05
# name → activation, σ_w² (None: the edge), σ_b², and off the edge the layers where the approach is exponential
SETTINGS = {
    "ReLU": ("relu", None, 0.0, None),
    "tanh": ("tanh", None, SIGMA_B2, None),
    "ELU": ("elu", None, SIGMA_B2, None),
    "tanh, ordered": ("tanh", 1.3, SIGMA_B2, slice(10, 25)),
    "tanh, chaotic": ("tanh", 2.5, SIGMA_B2, slice(5, 20)),
    "ReLU, ordered": ("relu", 1.5, 0.5, slice(15, 25)),
}
GROUPS = 4  # of networks; each group gives one depth scale

# Fixed before the run.
POWER = Within(margin=0.05)
COEFFICIENT = Within(share=0.05)
GAP = Within(share=0.15)
DEPARTURE = Within(high=0.1)
DEPTH_SCALE = Within(share=0.1)


def run(options: Options) -> xr.Dataset:
    """Pairs of signals on the edge of chaos and off it, through networks and through the correlation map.

    Returns:
      gap [setting, seed, layer] and gap_predicted [setting, layer]: 1 − c; deep [setting, far]: gap_predicted
      at far layers; power and coefficient [setting] of its asymptote (NaN off the edge); c_star and xi [setting].
    """
    names = ["ReLU", "tanh", "ReLU, ordered"] if options.smoke else list(SETTINGS)
    parts = [_measure_and_predict(*SETTINGS[name][:3], options) for name in names]
    return xr.concat(parts, xr.DataArray(names, dims="setting", name="setting"))


def _measure_and_predict(activation: str, sigma_w2: float | None, sigma_b2: float, options: Options) -> xr.Dataset:
    on_edge, depth, deep = sigma_w2 is None, DEPTH[options.size], MAP_LAYERS[options.size]
    sigma_w2 = theory.critical_point(activation, sigma_b2)[0] if sigma_w2 is None else sigma_w2
    fixed = theory.fixed_point(activation, sigma_w2, sigma_b2)
    config = Config(hidden=(WIDTH,) * (depth - 1), activation=activation, initializer="mean_field")
    hypers = Hypers(sigma_w=sigma_w2**0.5, sigma_b=sigma_b2**0.5)
    inputs = _inputs(fixed.q, sigma_w2, sigma_b2)
    found = probe(gap, config, hypers, SEEDS[options.size], inputs, classes=WIDTH)[0]
    predicted = 1 - theory.correlations(0.0, fixed.q, sigma_w2, sigma_b2, activation, deep if on_edge else depth)
    far = np.unique(np.geomspace(1, deep, 41).astype(int))
    power = coefficient = np.nan
    if on_edge and activation == "relu":
        power, coefficient = 2.0, 9 * np.pi**2 / 2
    elif on_edge:
        power, coefficient = 1.0, 2 / float(theory.curvature(fixed.q, sigma_w2, activation))
    columns = {
        "gap": (("seed", "layer"), found.astype(np.float64)),
        "gap_predicted": ("layer", predicted[:depth]),
        "deep": ("far", predicted[far - 1] if on_edge else np.full(len(far), np.nan)),
    }
    numbers = {"c_star": fixed.c, "xi": fixed.xi_c, "power": power, "coefficient": coefficient}
    return xr.Dataset(columns | numbers, {"layer": np.arange(1, depth + 1), "far": far})


def gap(network: Network) -> jax.Array:
    """1 − c of the two examples in each layer: half the squared distance of their unit vectors."""

    def one(z: jax.Array) -> jax.Array:
        unit = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        return jnp.sum((unit[0] - unit[1]) ** 2) / 2

    return per_layer(one, network.seen(network.inputs).pre_activations)


def _inputs(q: float, sigma_w2: float, sigma_b2: float) -> np.ndarray:
    """Two inputs with pre-activations of mean square q and correlation 0 in the first layer."""
    first, second = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, 2)))[0].T * WIDTH**0.5
    square = (q - sigma_b2) / sigma_w2
    cosine = -sigma_b2 / (q - sigma_b2)
    return np.sqrt(square) * np.stack([first, cosine * first + np.sqrt(1 - cosine**2) * second])


def _to_fixed_point(data: xr.Dataset, gap: str) -> xr.DataArray:
    """c* − c, which falls exponentially off the edge."""
    return data[gap] - (1 - data["c_star"])


def _depth_scale(distance: xr.DataArray) -> xr.DataArray:
    """Number of layers over which the distance falls by a factor e."""
    line = xr.ufuncs.log(distance).polyfit("layer", 1)
    return -1 / line["polyfit_coefficients"].sel(degree=1, drop=True)


def check(data: xr.Dataset) -> list[Row]:
    """On the edge, the asymptotes of the map and the networks; off it, the depth scales."""
    rows, n, depth, deep = [], data.sizes["seed"], int(data["layer"][-1]), int(data["far"][-1])
    for name in data["setting"].values:
        one, layers = data.sel(setting=name), SETTINGS[name][3]
        if layers is None:
            late = one["deep"].sel(far=slice(1000, None))
            power = -np.polyfit(np.log(late["far"].values), np.log(late.values), 1)[0]
            found = {"power": power, "coefficient": float(late[-1]) * deep ** float(one["power"])}
            quantities = {
                "power": f"1 − c ∝ 1/layer^p by the map, p over layers 1000 to {deep}",
                "coefficient": f"coefficient of 1/layer^p by the map in layer {deep}",
            }
            for what, within in (("power", POWER), ("coefficient", COEFFICIENT)):
                value, quantity = Estimate(float(found[what]), np.nan, np.nan, 0), f"{name}: {quantities[what]}"
                rows.append(row(NAME, quantity, PAPER, value, within, predicted=float(one[what])))
            end = one.isel(layer=-1)
            quantity = f"{name}: 1 − c in layer {depth} of networks"
            predicted = float(end["gap_predicted"])
            rows.append(row(NAME, quantity, MAP, estimate(end["gap"].values), GAP, predicted=predicted))
            departure = one["gap"].mean("seed") / one["gap_predicted"] - 1
            rms = Estimate(float((departure**2).mean() ** 0.5), np.nan, np.nan, n)
            quantity = f"{name}: relative departure of 1 − c of networks from the map, RMS over layers"
            rows.append(row(NAME, quantity, MAP, rms, DEPARTURE))
        else:
            means = one[["c_star"]].assign(gap=one["gap"].coarsen(seed=n // GROUPS).mean())
            scale = estimate(_depth_scale(_to_fixed_point(means, "gap").sel(layer=layers)).values)
            quantity = f"{name}: depth scale of c → c* in layers {layers.start} to {layers.stop} of networks"
            rows.append(row(NAME, f"{quantity}; ξ_c", PAPER, scale, DEPTH_SCALE, predicted=float(one["xi"])))
            here = float(_depth_scale(_to_fixed_point(one, "gap_predicted").sel(layer=layers)))
            rows.append(row(NAME, f"{quantity}; the map there", MAP, scale, DEPTH_SCALE, predicted=here))
    return rows


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """On the edge on log–log axes, where a power law is straight; off it on a linear axis of layers."""
    figure, ((edge, off),) = figures.panels(1, 2, width=3.9, height=3.5)
    drawn: list[pd.DataFrame] = []
    for which, name in enumerate(data["setting"].values):
        one, label, layers = data.sel(setting=name), name, SETTINGS[name][3]
        if layers is None:
            axes, gap, line = edge, one["gap"], one["deep"].rename(far="layer")
            at, tail = np.array([1, 2, 3, 5, 8, 12, 18, 27, 38, 50]), np.array([10, int(line["layer"][-1])])
            asymptote = float(one["coefficient"]) / tail ** float(one["power"])
        else:
            axes, gap, line = off, _to_fixed_point(one, "gap"), _to_fixed_point(one, "gap_predicted")
            line = line.sel(layer=slice(SHOWN_LAYERS))
            at, tail = np.arange(1, SHOWN_LAYERS + 1, 3), np.array([layers.start, int(line["layer"][-1])])
            asymptote = float(line[-1]) * np.exp((tail[-1] - tail) / float(one["xi"]))
            label = f"{name}: $\\xi_c$ = {float(one['xi']):.1f} layers"
        axes.plot(tail, asymptote, color="0.55", linewidth=0.8, zorder=1)
        found = interval(gap).sel(layer=at[at <= data.sizes["layer"]])
        figures.theory_line(axes, line["layer"], line, which)
        figures.points(axes, found["layer"], found, which, label)
        drawn += [found.to_dataframe().assign(setting=name), line.to_dataframe(name="map").assign(setting=name)]
    edge.text(900, 2.5e-5, "$9\\pi^2/(2l^2)$", ha="right", va="top", color="0.35", fontsize=8)
    edge.text(400, 3e-2, "$2/(f''(1)\\,l)$", ha="left", va="bottom", color="0.35", fontsize=8)
    edge.set(xscale="log", yscale="log", xlabel="layer $l$", title="at the edge of chaos")
    edge.set_ylabel("distance to full correlation, 1 − c")
    off.set(yscale="log", ylim=(1e-5, 2), xlabel="layer $l$", title="off the edge")
    off.set_ylabel("distance to the fixed point, $c^*$ − c")
    for axes in (edge, off):
        figures.theory_line(axes, [], [], 6, "theory: the map")
        axes.plot([], [], color="0.55", linewidth=0.8, label="its asymptote")
        axes.legend(loc="lower left")
    sentence = (
        "How two signals that are uncorrelated in the first layer become alike with depth. Left: on the edge of chaos "
        "1 − c falls as a power, the inverse square of the layer with ReLU and its inverse with tanh and ELU. Right: "
        "off it c tends to its fixed point exponentially, over ξ_c layers. Points: networks of 500 units at "
        "initialization, means with 95 % intervals; dashed: the correlation map over and over; grey: its asymptotes."
    )
    table = pd.concat([each.reset_index().melt(["setting", "layer"], var_name="what") for each in drawn])
    return [Picture(NAME, figure, sentence, table)]
