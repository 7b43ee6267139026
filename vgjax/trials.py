"""What becomes of an initializer in networks: its phase by theory, its signals over depth, its place after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vgjax import batches, theory
from vgjax.activations import Activation
from vgjax.analysis import Estimate, compared, estimate, prediction
from vgjax.config import Config, Hypers
from vgjax.data import Dataset
from vgjax.initializers import INITIALIZERS, Initializer, is_data_dependent
from vgjax.loop import run
from vgjax.model import Variables, initial_variables
from vgjax.names import text_of
from vgjax.parallel import start_program
from vgjax.train import purpose_key

DEEP = Config(
    dataset="digits",
    scaling="standardised",
    hidden=(128,) * 30,
    steps=1,
    cadence="at(0)",
    record=("activations", "deltas"),
)
TRAINED = replace(DEEP, hidden=(64,) * 8, batch_size=50, steps=150, record=("norms",))
HYPERS = Hypers(learning_rate=0.1)
N_SEEDS = 8
CROSSED = 6  # depth scales ξ_c that a signal can cross and still be learnt from (Schoenholz et al. 2017, 1611.01232)
ALMOST_INFINITE = 1e8  # q at which the slopes of an activation are those of its two ends


class Phase(NamedTuple):
    """Where layers stand on the phase diagram of an activation at σ_b = 0."""

    name: str  # ordered, critical or chaotic
    critical: float  # σ_w² of the critical point; NaN: there is none
    chi1: Estimate  # χ₁ at the fixed point, over the interval of σ_w²
    grows: bool  # lengths grow for ever, so that q* is infinite
    depth: tuple[float, float]  # 6 ξ_c (where q* is infinite, 6 |ξ_∇|), over the interval of σ_w² [layers]


def phase(phi: str | Activation, sigma_w2: Estimate) -> Phase:
    """Ordered, critical or chaotic, for an interval of σ_w²: critical where χ₁ may be 1."""
    critical, _ = theory.critical_point(phi)
    at = [theory.fixed_point(phi, one) for one in sigma_w2[:3]]
    chi1 = [
        float(theory.chi1(ALMOST_INFINITE, one, phi)) if np.isinf(fixed.q) else fixed.chi1
        for one, fixed in zip(sigma_w2[:3], at, strict=True)
    ]
    low, high = min(chi1), max(chi1)
    is_critical = sigma_w2.low <= critical <= sigma_w2.high or low <= 1 <= high
    depths = [
        CROSSED / abs(np.log(growth)) if np.isinf(fixed.q) else CROSSED * fixed.xi_c
        for growth, fixed in zip(chi1, at, strict=True)
    ]
    depth = (min(depths), np.inf) if is_critical else (min(depths), max(depths))
    name = "critical" if is_critical else "ordered" if high < 1 else "chaotic"
    return Phase(name, critical, Estimate(chi1[0], low, high, sigma_w2.n), bool(np.isinf(at[0].q)), depth)


def critical_line(phi: str | Activation, most: float) -> tuple[np.ndarray, np.ndarray]:
    """σ_w² and σ_b² ≤ `most` at which χ₁ = 1, along q* from 0 on: σ_w² = 1/E[φ'²], σ_b² = q − E[φ²]/E[φ'²]."""
    q = np.concatenate([[0.0], np.geomspace(1e-4, 1e4, 400)])
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma_w2 = 1 / np.asarray(theory.chi1(q, 1.0, phi))
        sigma_b2 = q - sigma_w2 * theory.length_map(q, 1.0, 0.0, phi)
    allowed = np.isfinite(sigma_b2) & (sigma_b2 > -1e-9) & (sigma_b2 <= most)
    return sigma_w2[allowed], np.maximum(sigma_b2[allowed], 0)


def signals(config: Config, hypers: Sequence[Hypers], data: Dataset) -> list[xr.Dataset]:
    """`analysis.compared` at step 0 for each setting: measured over seeds, and predicted for Gaussian weights.

    Args:
      config: as DEEP, with an initializer and an activation.
      hypers: settings.
      data: the data set of the first batch.
    """
    history = run(config, hypers, N_SEEDS, dataset=data).history
    lanes = [slice(i * N_SEEDS, (i + 1) * N_SEEDS) for i in range(len(hypers))]
    return [
        compared(history.isel(lane=own), prediction(config, setting, data))
        for own, setting in zip(lanes, hypers, strict=True)
    ]


class Place(NamedTuple):
    """Where an initializer ends among the built-in ones."""

    accuracy: dict[str, np.ndarray]  # validation accuracy by initializer, the examined one first, [seeds]
    best: int  # first place that the intervals of the differences leave open
    worst: int  # last one

    def mean(self) -> Estimate:
        """Of the examined one."""
        return estimate(next(iter(self.accuracy.values())))


class Contest:
    """The same networks, seeds and batches for an initializer and the built-in ones.

    Args:
      named: the examined one.
      data: the data set.
    """

    def __init__(self, named: str | Initializer, data: Dataset):
        self.data, self.train = data, batches.arrays(data, TRAINED)[0]
        self.contestants = [named, *(other for other in INITIALIZERS if other != named)]
        self.starts = {c: self._start(c, "linear") for c in self.contestants if not is_data_dependent(c)}

    def kernels(self, named: str | Initializer) -> np.ndarray:
        """Weights of all hidden layers, [seeds, layers, fan_in, fan_out]."""
        params = self.starts.get(named) or self._start(named, "tanh")
        names = [f"layer_{i + 1}" for i in range(len(TRAINED.hidden))]
        return np.stack([np.asarray(params["params"][name]["kernel"], np.float64) for name in names], axis=1)

    def place(self, phi: str | Activation) -> Place:
        """Train all as lanes of one program; differences are taken seed by seed, all intervals right together."""
        starts = [self.starts.get(c) or self._start(c, phi) for c in self.contestants]
        variables = jax.tree.map(lambda *leaves: np.concatenate(leaves), *map(jax.device_get, starts))
        config = replace(TRAINED, activation=phi)
        history = run(
            config, [HYPERS] * len(starts), N_SEEDS, dataset=self.data, variables=variables, tensorboard="none"
        ).history
        accuracy = history["validation_accuracy"].isel(evaluation=-1).values.reshape(len(starts), N_SEEDS)
        accuracy = accuracy.astype(np.float64)
        lead = [estimate(accuracy[0] - other, 1 - 0.05 / (len(starts) - 1)) for other in accuracy[1:]]
        best = 1 + sum(one.high < 0 for one in lead)
        worst = len(starts) - sum(one.low > 0 for one in lead)
        return Place(dict(zip(map(text_of, self.contestants), accuracy, strict=True)), best, worst)

    def _start(self, named: str | Initializer, phi: str | Activation) -> Variables:
        """Initial variables of every seed, as `vgjax train` would draw them (LSUV: on the first examples)."""
        config = replace(TRAINED, initializer=named, activation=phi)

        def one_lane(inputs: Any, seed: jax.Array) -> Variables:
            key = purpose_key(jax.random.key(seed), "init")
            return initial_variables(config, self.data.classes, Hypers(), key, inputs)

        inputs = batches.scaled(self.train, self.train.inputs[: config.batch_size])
        return start_program(one_lane)(inputs, jnp.arange(N_SEEDS, dtype=jnp.uint32))
