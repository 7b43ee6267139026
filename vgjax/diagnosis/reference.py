"""What a diagnosis compares a run with: random draws of networks of the same widths at criticality."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr

from vgjax.config import Config, Hypers
from vgjax.data import batches
from vgjax.data.catalogue import EMBEDDED, Dataset, default_data_dir, load
from vgjax.network.layer_names import layer_name, layer_names
from vgjax.theory.criticality import critical_variance
from vgjax.theory.ensemble import draw_networks

N_DRAWS = 32
MOST_EXAMPLES = 64


@dataclass(frozen=True)
class Reference:
    """Random draws of the plain network of this depth and these widths at criticality."""

    draws: xr.Dataset  # dims draw, layer: delta_log10_rms, gradient_log10_rms, dead_fraction, saturated_fraction
    sigma_w2: float
    inputs: str  # what the networks were given


def critical_draws(config: Config, history: xr.Dataset, data: Dataset | None = None) -> Reference:
    """Draw plain networks of the run's widths at the σ_w² that, over this depth, keeps the gradient's length.

    Args:
      config: the run's.
      history: gives the numbers of inputs and outputs.
      data: the run's data, or None: the networks get standard-normal inputs.
    """
    fans = {str(name): i for i, name in enumerate(history["layer"].values)}
    last = layer_name(len(config.hidden) + 1)
    features = int(history["fan_in"].values[fans["layer_1"]]) if "layer_1" in fans else 0
    classes = int(history["fan_out"].values[fans[last]]) if last in fans else 0
    if data is not None:
        features, classes = features or data.train_inputs.shape[1], classes or data.classes
    features, classes = features or config.hidden[0], classes or 10
    n = min(config.batch_size, MOST_EXAMPLES)
    inputs, source = np.random.default_rng(0).standard_normal((n, features)), "standard normal"
    if data is not None and data.train_inputs.shape[1] == features:
        inputs, source = _inputs(config, data, n), f"{data.name}, scaled to RMS 1"
    sigma_w2 = critical_variance(config.activation, len(config.hidden))
    plain = Config(hidden=config.hidden, activation=config.activation, initializer="mean_field")
    return Reference(_draws(plain, inputs.tobytes(), features, classes, sigma_w2), sigma_w2, source)


def data_without_network(config: Config, data_dir: str | Path | None) -> Dataset | None:
    """The data set that the config names, if it is on this machine; nothing is downloaded."""
    name, cache = str(config.dataset), Path(os.path.expanduser(data_dir or default_data_dir()), "arrays")
    if name in EMBEDDED or (cache / f"{name}.npz").is_file():
        try:
            return load(name, data_dir)
        except ValueError:
            return None
    return None


@lru_cache(maxsize=64)
def _draws(config: Config, inputs: bytes, features: int, classes: int, sigma_w2: float) -> xr.Dataset:
    """Draw the networks; the inputs come as bytes, which can be a key of the cache."""
    x = np.frombuffer(inputs).reshape(-1, features)
    hypers, labels = Hypers(sigma_w=math.sqrt(sigma_w2)), np.arange(len(x)) % classes
    xs, ys = (np.broadcast_to(one, (N_DRAWS, *one.shape)) for one in (x, labels))
    drawn = draw_networks(config, hypers, xs, ys, classes, len(x))
    names = layer_names(len(config.hidden) + 1)
    columns = {name: (("draw", "layer"), values) for name, values in drawn._asdict().items()}
    draws = xr.Dataset(columns, {"layer": names})
    with np.errstate(divide="ignore"):
        return draws.assign({f"{name}_log10_rms": np.log10(draws[f"{name}_rms"]) for name in ("delta", "gradient")})


def _inputs(config: Config, data: Dataset, n: int) -> np.ndarray:
    """n evenly spaced training examples (data may be sorted by class) as the network sees them, scaled to RMS 1."""
    train = batches.host_examples(data, replace(config, batch_size=1, replicas=1, holdout=0))
    x = train.scaled(np.linspace(0, len(train.inputs) - 1, n).astype(int))
    rms = np.sqrt(np.mean(np.square(x)))
    return x / (rms if rms > 0 else 1.0)
