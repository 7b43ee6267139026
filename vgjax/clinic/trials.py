"""Try an initializer in networks: its phase in theory, its signals over depth, its place after training."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vgjax.activations import Activation
from vgjax.analysis import Estimate, compared, estimate, prediction, share_estimate
from vgjax.config import Config, Hypers
from vgjax.data import batches
from vgjax.data.catalogue import Dataset
from vgjax.initializers import INITIALIZERS, Initializer, initializer, is_data_dependent
from vgjax.names import text_of
from vgjax.network.layer_names import layer_names
from vgjax.network.model import MLP, Variables, unit_variance
from vgjax.theory.criticality import critical_point
from vgjax.theory.mean_field import chi1, fixed_point
from vgjax.training.loop import run
from vgjax.training.parallel import start_program

DEEP = Config(
    dataset="digits",
    scaling="standardised",
    hidden=(128,) * 30,
    batch_size=32,
    steps=1,
    cadence="at(0)",
    record=("activations", "deltas"),
)
TRAINED = replace(DEEP, hidden=(64,) * 8, batch_size=50, steps=150, record=())
HYPERS = Hypers(learning_rate=0.1)
N_SEEDS = 8
DEPTH_SCALES = 6  # depth scales ξ_c over which a network can be trained (Schoenholz et al. 2017, 1611.01232)
ROUNDING = 1e-6  # error of χ₁ at a critical σ_w² that was found numerically
ALMOST_INFINITE = 1e8  # a q so large that only the slopes for very large inputs count


class Phase(NamedTuple):
    """Where layers stand on the phase diagram of an activation at σ_b = 0."""

    name: str  # ordered, critical or chaotic
    critical: float  # σ_w² of the critical point; NaN: there is none
    chi1: Estimate  # χ₁ at the fixed point, over the interval of σ_w²
    grows: bool  # q* is infinite: lengths grow without limit
    depth: tuple[float, float]  # 6 ξ_c (where q* is infinite, 6 |ξ_∇|), over the interval of σ_w² [layers]


def phase(phi: str | Activation, sigma_w2: Estimate) -> Phase:
    """Ordered, critical or chaotic for an interval of σ_w²; critical if the interval of χ₁ contains 1."""
    critical, _ = critical_point(phi)
    at = [fixed_point(phi, one) for one in sigma_w2[:3]]
    growths = [
        float(chi1(ALMOST_INFINITE, one, phi)) if np.isinf(fixed.q) else fixed.chi1
        for one, fixed in zip(sigma_w2[:3], at, strict=True)
    ]
    low, high = min(growths), max(growths)
    is_critical = low - ROUNDING <= 1 <= high + ROUNDING
    depths = [
        DEPTH_SCALES / abs(np.log(growth)) if np.isinf(fixed.q) else DEPTH_SCALES * fixed.xi_c
        for growth, fixed in zip(growths, at, strict=True)
    ]
    depth = (min(depths), np.inf) if is_critical else (min(depths), max(depths))
    name = "critical" if is_critical else "ordered" if high < 1 else "chaotic"
    return Phase(name, critical, Estimate(growths[0], low, high, sigma_w2.n), bool(np.isinf(at[0].q)), depth)


def compared_signals(config: Config, hypers: Sequence[Hypers], data: Dataset) -> list[xr.Dataset]:
    """`analysis.compared` at step 0 for each setting: measured over seeds, predicted for Gaussian weights.

    Args:
      config: DEEP with an initializer and an activation.
      hypers: the settings.
      data: the data set.
    """
    history = run(config, hypers, N_SEEDS, dataset=data).history
    lanes = [slice(i * N_SEEDS, (i + 1) * N_SEEDS) for i in range(len(hypers))]
    return [
        compared(history.isel(lane=own), prediction(config, setting, data))
        for own, setting in zip(lanes, hypers, strict=True)
    ]


class Place(NamedTuple):
    """The rank of an initializer among the built-in ones after training."""

    accuracy: dict[str, np.ndarray]  # validation accuracy by initializer, the examined one first, [seeds]
    best: int  # best place that the intervals of the differences leave possible
    worst: int  # worst such place

    def __str__(self) -> str:
        return f"{self.best}" if self.best == self.worst else f"{self.best} to {self.worst}"

    def mean(self) -> Estimate:
        """Mean accuracy of the examined initializer."""
        return share_estimate(next(iter(self.accuracy.values())))


class Contest:
    """Train an initializer and the built-in ones in the same networks, with the same seeds and batches.

    Args:
      named: the examined initializer.
      data: the data set.
    """

    def __init__(self, named: str | Initializer, data: Dataset):
        self.data, self.train = data, batches.arrays(data, TRAINED)[0]
        self.contestants = [named, *(other for other in INITIALIZERS if other != named)]
        self.starts = {c: self._drawn(c) for c in self.contestants}

    def kernels(self, named: str | Initializer) -> np.ndarray:
        """Weights of the hidden layers that have the shape of the last one, [seeds, layers, fan_in, fan_out]."""
        kernels = [layer["kernel"] for layer in list(self.starts[named]["params"].values())[:-1]]
        same = [kernel for kernel in kernels if kernel.shape == kernels[-1].shape]
        return np.stack(same, axis=1).astype(np.float64)

    def place(self, phi: str | Activation) -> Place:
        """Train all initializers as lanes of one program, and rank the examined one by differences for each seed.

        The intervals of the differences hold together.
        """
        config = replace(TRAINED, activation=phi)
        starts = [self._fitted(replace(config, initializer=c), self.starts[c]) for c in self.contestants]
        variables = jax.tree.map(lambda *leaves: np.concatenate(leaves), *starts)
        history = run(
            config, [HYPERS] * len(starts), N_SEEDS, dataset=self.data, variables=variables, tensorboard="none"
        ).history
        accuracy = history["validation_accuracy"].isel(evaluation=-1).values.reshape(len(starts), N_SEEDS)
        accuracy = np.nan_to_num(accuracy.astype(np.float64))  # a lane that diverged has accuracy 0
        lead = [estimate(accuracy[0] - other, 1 - 0.05 / (len(starts) - 1)) for other in accuracy[1:]]
        best = 1 + sum(one.high < 0 for one in lead)
        worst = len(starts) - sum(one.low > 0 for one in lead)
        return Place(dict(zip(map(text_of, self.contestants), accuracy, strict=True)), best, worst)

    def _drawn(self, named: str | Initializer) -> Variables:
        """First variables for every seed: a key for each layer's weights, biases 0."""
        init, widths = initializer(named), (self.data.train_inputs.shape[1], *TRAINED.hidden, self.data.classes)
        names = layer_names(len(widths) - 1)
        layers = dict(zip(names, itertools.pairwise(widths), strict=True))
        params = {}
        for shape in dict.fromkeys(layers.values()):
            same = [name for name in names if layers[name] == shape]
            ids = np.array([zlib.crc32(f"{name}/kernel".encode()) for name in same], np.uint32)
            seeds = np.arange(N_SEEDS, dtype=np.uint32)

            def draw(_: None, lane: Any, shape: tuple[int, int] = shape) -> jax.Array:
                seed, which = lane
                return init(jax.random.fold_in(jax.random.key(seed), which), shape, jnp.float32)

            weights = start_program(draw)(None, (np.repeat(seeds, len(ids)), np.tile(ids, N_SEEDS)))
            weights = np.asarray(weights).reshape(N_SEEDS, len(ids), *shape)
            for i, name in enumerate(same):
                params[name] = {"kernel": weights[:, i], "bias": np.zeros((N_SEEDS, shape[1]), np.float32)}
        return {"params": {name: params[name] for name in names}}

    def _fitted(self, config: Config, start: Variables) -> Variables:
        """The variables, rescaled on the first examples if the initializer depends on the data."""
        if not is_data_dependent(config.initializer):
            return start
        model, train = MLP(config, self.data.classes), self.train
        inputs = batches.scaled(train, train.inputs[: config.batch_size])
        params = jax.vmap(lambda variables: unit_variance(model, variables, inputs))(start)
        return jax.device_get({"params": params})
