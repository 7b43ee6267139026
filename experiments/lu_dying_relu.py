"""A deep and narrow ReLU network is born dead: one layer whose units are all silent ends every signal.

Claim: without biases each unit is silent on an example with probability ½, so a layer of n units passes nothing on with
probability 2⁻ⁿ. A network is dead with probability 1 − Π(1 − 2^(−n_l)), which tends to 1 with depth. One more unit in
each layer doubles the depth at which half of the networks are dead.

Paper: Lu, Shin, Su & Karniadakis 2019, Dying ReLU and initialization: theory and numerical examples, arXiv:1903.06733,
after its theorem on the probability of being born dead. Theory is exact at every width; there are no printed numbers to
compare with.
Command: `python -m experiments lu_dying_relu` (about 20 s on 2 cores; `--full` from 10 000 networks a width instead of
4000).

Each network gets one Gaussian example and is dead on that example; on a whole set of inputs networks die less often.
All depths are read off the same networks, at the layers where they die, so the results at several depths are not
independent.

Expected: dead at depths 10, 20 and 50: .944, .997 and 1 at 2 units a layer; .476, .725 and .960 at 4; .146, .270 and
.545 at 6; .038, .075 and .178 at 8.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.ticker import FixedLocator, FuncFormatter
from scipy.stats import binomtest

from experiments.options import Options
from experiments.reproduction import Picture, Row, Within, row
from vgjax import figures
from vgjax.analysis import Estimate
from vgjax.config import Config, Hypers
from vgjax.theory import profiles
from vgjax.training.probe import Network, per_layer, probe

NAME = "lu_dying_relu"
TITLE = "Lu et al. 2019: ReLU networks that are dead at birth"
PAPER = "after Lu et al. 2019, 1903.06733; closed form"

WIDTHS = (2, 3, 4, 5, 6, 8)
DEPTH = 100
TAPERED = (8, 6, 5, 4, 3, 2, 3, 4, 5, 6, 8)
JUDGED_DEPTHS = (10, 20, 50)  # hidden layers at which rows judge
FEATURES = 4
HYPERS = Hypers(sigma_w=2**0.5)  # the result does not depend on σ_w
SEEDS = {"smoke": 2000, "default": 4000, "full": 10_000}

# Fixed before the run.
DEAD = Within(margin=0.03)
SILENCED = Within(share=0.1)


def run(options: Options) -> xr.Dataset:
    """The layer at which the signal of each network ends, and what theory predicts.

    Returns:
      dead [width, depth] and tapered [layer]: shares of networks that are dead; silenced [width]: the share of layers
      that pass none of the signal on that they receive; each as _mean, _low, _high and _predicted;
      `attrs["networks"]`: networks a width.
    """
    widths = (2, 4, 6) if options.smoke else WIDTHS
    n = SEEDS[options.size]
    reached = np.stack([_reached((width,) * DEPTH, n) for width in widths])
    died = (reached < DEPTH).sum(1)
    tapered = _reached(TAPERED, n)
    depth, layer = np.arange(1, DEPTH + 1), np.arange(1, len(TAPERED) + 1)
    found = {
        "dead": (_shares((reached[:, None] < depth[:, None]).sum(-1), n), ("width", "depth")),
        "silenced": (_shares(died, reached.sum(1) + died), ("width",)),
        "tapered": (_shares((tapered < layer[:, None]).sum(-1), n), ("layer",)),
    }
    predicted = {
        "dead": np.stack([profiles.dead_probability((width,) * DEPTH) for width in widths]),
        "silenced": np.array([profiles.dead_probability([width])[0] for width in widths]),
        "tapered": profiles.dead_probability(TAPERED),
    }
    columns = {f"{name}_predicted": (found[name][1], values) for name, values in predicted.items()}
    for name, (shares, over) in found.items():
        columns |= {f"{name}_{end}": (over, shares[..., i]) for i, end in enumerate(("mean", "low", "high"))}
    return xr.Dataset(columns, {"width": list(widths), "depth": depth, "layer": layer}, {"networks": n})


def alive(network: Network) -> jax.Array:
    """Whether any unit of each layer is not zero, [L]."""
    return per_layer(lambda h: jnp.any(h != 0), network.seen(network.inputs).activations)


def _reached(hidden: tuple[int, ...], n: int) -> np.ndarray:
    """Number of hidden layers that the signal passes in each network, [n]; float64 keeps small signals above 0."""
    config = Config(hidden=hidden, activation="relu", initializer="mean_field")
    inputs = np.random.default_rng(0).standard_normal((1, FEATURES))
    return probe(alive, config, HYPERS, n, inputs, float64=True)[0, :, : len(hidden)].sum(-1)


def _shares(counts: np.ndarray, of: np.ndarray | int) -> np.ndarray:
    """Shares with Wilson's 95 % intervals, [..., 3]."""
    rows = []
    for k, n in zip(counts.ravel(), np.broadcast_to(of, counts.shape).ravel(), strict=True):
        interval = binomtest(int(k), int(n)).proportion_ci(method="wilson")
        rows.append((k / n, interval.low, interval.high))
    return np.array(rows).reshape(*counts.shape, 3)


def _estimate_of(data: xr.Dataset, name: str) -> xr.Dataset:
    """Mean, low and high of one quantity."""
    return xr.Dataset({end: data[f"{name}_{end}"] for end in ("mean", "low", "high")})


def check(data: xr.Dataset) -> list[Row]:
    """Shares of dead networks at three depths, of silenced layers, and of dead networks with unequal layers."""

    def judge(name: str, quantity: str, within: Within, **where: int) -> Row:
        one, predicted = _estimate_of(data, name).sel(where), float(data[f"{name}_predicted"].sel(where))
        share = Estimate(float(one["mean"]), float(one["low"]), float(one["high"]), data.attrs["networks"])
        return row(NAME, quantity, PAPER, share, within, predicted=predicted)

    rows = []
    for width in data["width"].values:
        for depth in JUDGED_DEPTHS:
            rows.append(judge("dead", f"{depth} layers of {width} units: P(dead)", DEAD, width=int(width), depth=depth))
        quantity = f"layers of {width} units: P(a layer silences what reaches it)"
        rows.append(judge("silenced", quantity, SILENCED, width=int(width)))
    layers = "-".join(map(str, TAPERED))
    return [*rows, judge("tapered", f"layers of {layers} units: P(dead)", DEAD, layer=len(TAPERED))]


@figures.styled
def plot(data: xr.Dataset) -> list[Picture]:
    """The share of dead networks against depth, and of silenced layers against width."""
    figure, ((left, right),) = figures.panels(1, 2, width=3.9, height=3.2)
    dead, silenced = _estimate_of(data, "dead"), _estimate_of(data, "silenced")
    at = [1, 2, 3, 5, 7, 10, 14, 20, 30, 50, 70, 100]
    for which, width in enumerate(data["width"].values):
        figures.theory_line(left, data["depth"], data["dead_predicted"].sel(width=width), which)
        figures.points(left, at, dead.sel(width=width, depth=at), which, f"{width} units")
        figures.points(right, width, silenced.sel(width=width), which)
    left.set(xscale="log", xlabel="hidden layers", ylabel="share of networks that are dead", ylim=(-0.03, 1.06))
    left.set_title("networks, $1 - (1 - 2^{-n})^{depth}$")
    left.xaxis.set_major_formatter("{x:g}")
    left.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="width $n$", title_fontsize=8)
    figures.theory_line(right, data["width"], data["silenced_predicted"], 6, "theory")
    right.plot([], [], "o", color="0.3", label="simulation, share and 95 % interval")
    right.set(
        yscale="log",
        xlabel="width of the layer (units)",
        ylabel="probability that it passes nothing on",
        title="single layers, $2^{-n}$",
    )
    right.yaxis.set_major_locator(FixedLocator([2.0**-n for n in range(1, 10)]))
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"1/{1 / y:.0f}"))
    right.minorticks_off()
    right.legend(loc="lower left")
    sentence = (
        "ReLU networks without biases at initialization, on one example. Left: the share that is dead, every output "
        "the same whatever the input, against depth. Right: the probability that all units of a layer are silent, "
        "of the layers that a signal reaches. Points: "
        f"{data.attrs['networks']} networks a width with 95 % intervals; dashed: 1 − Π(1 − 2^(−n))."
    )
    shown = dead.sel(depth=at).assign(predicted=data["dead_predicted"])
    return [Picture(NAME, figure, sentence, shown.to_dataframe().reset_index().round(5))]
