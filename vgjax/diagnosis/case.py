"""What a diagnosis looks at and gives: one setting of a history beside critical networks, and findings about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr

from vgjax.config import Config, Hypers
from vgjax.network.layer_names import layer_number

Severity = Literal["serious", "warning"]

LEARNT = 0.3  # share of chance's loss that a run must lose to have learnt; healthy 0.75 and more
SATURATED = 0.5  # share of a layer's units and examples; healthy up to 0.2; from 0.86
NOTHING = -45.0  # log₁₀ for zero: below float32's smallest number


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, with its evidence."""

    rule: str
    """Which rule found it."""
    severity: Severity
    """serious: training is prevented or numbers are lost; warning: worth knowing."""
    layers: tuple[str, ...]
    """Where."""
    steps: tuple[int, ...]
    """Recorded steps at which it shows."""
    lanes: tuple[int, ...]
    """Lanes of the history that show it."""
    hypers: Mapping[str, float]
    """Their setting."""
    numbers: Mapping[str, Any]
    """What was measured, and what it is compared with."""
    cause: str
    """What it is put down to, the first cause first."""
    evidence: str
    """One sentence with the numbers."""
    advice: str
    """What to try."""


@dataclass(frozen=True)
class Reference:
    """Random draws of the plain network of this depth and these widths at criticality."""

    draws: xr.Dataset  # dims draw, layer: delta_log10_rms, gradient_log10_rms, dead_fraction, saturated_fraction
    sigma_w2: float
    inputs: str  # what they were given


@dataclass(frozen=True)
class Case:
    """One setting of a history; what came after a lane left the finite numbers is NaN."""

    config: Config
    hypers: Hypers
    lanes: np.ndarray
    history: xr.Dataset
    reference: Reference

    @cached_property
    def last(self) -> xr.DataArray:
        """The last finite record of each lane."""
        bad = self.history["first_bad_step"]
        n = ((self.history["step"] < bad) | (bad < 0)).sum("record")
        return (n - 1).clip(min=0)

    @cached_property
    def hidden(self) -> list[str]:
        """The recorded hidden layers."""
        return [
            name for name in map(str, self.history["layer"].values) if layer_number(name) <= len(self.config.hidden)
        ]

    @cached_property
    def chance(self) -> float:
        """Loss of an even guess, or of the first step where the last layer is not recorded [nats]."""
        names = list(map(str, self.history["layer"].values))
        if layer_number(names[-1]) > len(self.config.hidden):
            return float(np.log(self.history["fan_out"].values[-1]))
        return float(self.history["loss"].isel(record=0).median())

    @cached_property
    def learnt(self) -> xr.DataArray:
        """Whether the loss fell, by lane."""
        end = self.history["train_loss"].isel(evaluation=-1)
        return (end <= (1 - LEARNT) * self.chance) & (self.history["first_bad_step"] < 0)

    def of_hidden(self, name: str) -> xr.DataArray:
        """A statistic of the hidden layers in float64."""
        return self.history[name].sel(layer=self.hidden).astype(np.float64)

    @cached_property
    def profile(self) -> str:
        """By what the decay is measured."""
        return "delta_log10_rms" if "delta_log10_rms" in self.history else "gradient_log10_rms"

    @cached_property
    def level(self) -> list[str]:
        """The layers over which the decay is measured: batch norm makes of the first what the data's scale is."""
        return [name for name in self.hidden if self.config.norm != "batch" or layer_number(name) > 1]

    @cached_property
    def change(self) -> xr.DataArray:
        """Decades that the gradient gains from the last hidden layer to the first, [lane, record]."""
        return decades(self.history[self.profile].sel(layer=self.level))

    @cached_property
    def healthy(self) -> tuple[float, float]:
        """The same in the critical draws: mean, and 3 standard deviations."""
        values = decades(self.reference.draws[self.profile].sel(layer=self.level)).values
        return float(values.mean()), 3 * float(values.std(ddof=1))

    @cached_property
    def sigma_w2(self) -> tuple[float, float] | None:
        """Smallest and largest σ_w² = ‖W‖²/fan_out of the layers above the first, at the start."""
        if "weight_norm" not in self.history or len(self.hidden) < 2:
            return None
        norm = self.history["weight_norm"].isel(record=0).median("lane").sel(layer=self.hidden[1:])
        values = norm.values.astype(np.float64) ** 2 / norm["fan_out"].values
        return float(values.min()), float(values.max())

    def found(
        self,
        rule: str,
        shows: xr.DataArray,
        layers: Any,
        when: xr.DataArray | None,
        numbers: Mapping[str, Any],
        cause: str,
        evidence: str,
        advice: str,
        severity: Severity | None = None,
    ) -> Finding:
        """A finding of the lanes that show it; serious where most of them have not learnt."""
        stuck = not bool(self.learnt.where(shows).sum() * 2 > shows.sum())
        n, of = int(shows.sum()), shows.size
        steps = () if when is None else self.history["step"].values[np.asarray(when.where(shows).sum("lane") > 0)]
        return Finding(
            rule,
            severity or ("serious" if stuck else "warning"),
            tuple(map(str, layers)),
            tuple(int(step) for step in steps),
            tuple(int(lane) for lane in self.lanes[shows.values]),
            {name: float(value) for name, value in self.hypers._asdict().items()},
            {**numbers, "lanes_that_show_it": n, "lanes": of},
            cause,
            evidence if of == 1 else f"{evidence} ({n} of {of} lanes)",
            advice,
        )


def decades(log10_rms: xr.DataArray) -> xr.DataArray:
    """Decades gained from the last layer to the first, by a least-squares line over the layers; fewer than two: 0."""
    logs = log10_rms.astype(np.float64)
    logs = logs.where(logs != -np.inf, NOTHING)
    x = xr.DataArray([float(layer_number(str(name))) for name in logs["layer"].values], dims="layer")
    x = x - x.mean()
    if x.size < 2:
        return 0 * logs.sum("layer", skipna=False)
    slope = (logs * x).sum("layer", skipna=False) / float((x**2).sum())
    return -slope * float(x.max() - x.min())


def most(shows: xr.DataArray) -> bool:
    """Whether half of the lanes or more show it, so that the median lane does."""
    return bool(shows.any()) and 2 * int(shows.sum()) >= shows.size


def stays(case: Case, bad: xr.DataArray) -> xr.DataArray:
    """[lane, record] → which lanes suffer from it: from the start, unless they recover and learn; or at a dull end."""
    start, end = bad.isel(record=0), bad.isel(record=case.last)
    return (start & (end | ~case.learnt)) | (end & ~case.learnt)


def update_ratio(case: Case) -> xr.DataArray:
    """The median layer's ‖ΔW‖/‖W‖, [lane, record]."""
    ratio = case.history["update_ratio"].astype(np.float64)
    return ratio.where(np.isfinite(ratio)).median("layer")
