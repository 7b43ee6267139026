"""What a rule gets and gives: the lanes of one setting with a reference (`Case`), and a `Finding`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr

from vgjax.analysis import decay_of_logs
from vgjax.config import Config, Hypers
from vgjax.diagnosis.reference import Reference
from vgjax.network.layer_names import layer_number

Severity = Literal["serious", "warning"]

LEARNT = 0.3  # a run has learnt if its loss fell by this share of the loss of guessing; healthy runs: 0.75 or more
SATURATED = 0.5  # share of a layer's units and examples; healthy runs: up to 0.2; saturated ones: from 0.86


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, with its evidence."""

    rule: str
    """Which rule found it."""
    severity: Severity
    """serious: the network does not learn or numbers are lost; warning: worth knowing."""
    layers: tuple[str, ...]
    """Layers that show it."""
    steps: tuple[int, ...]
    """Recorded steps that show it."""
    lanes: tuple[int, ...]
    """Lanes of the history that show it."""
    hypers: Mapping[str, float]
    """Their setting."""
    numbers: Mapping[str, Any]
    """What was measured, and what it is compared with."""
    cause: str
    """Its causes, the most basic one first."""
    evidence: str
    """One sentence with the numbers."""
    advice: str
    """What to try."""


class Explanation(NamedTuple):
    """The sentences of a finding."""

    cause: str
    evidence: str
    advice: str


@dataclass(frozen=True)
class Case:
    """The lanes of one setting. What a lane recorded after its first NaN or infinity is NaN."""

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
        """Loss of guessing all classes equally; without a record of the last layer, that of the first step [nats]."""
        names = list(map(str, self.history["layer"].values))
        if layer_number(names[-1]) > len(self.config.hidden):
            return float(np.log(self.history["fan_out"].values[-1]))
        return float(self.history["loss"].isel(record=0).median())

    @cached_property
    def learnt(self) -> xr.DataArray:
        """Whether the loss fell enough (`LEARNT`), [lane]."""
        end = self.history["train_loss"].isel(evaluation=-1)
        return (end <= (1 - LEARNT) * self.chance) & (self.history["first_bad_step"] < 0)

    def of_hidden(self, name: str) -> xr.DataArray:
        """A statistic of the hidden layers in float64."""
        return self.history[name].sel(layer=self.hidden).astype(np.float64)

    @cached_property
    def profile(self) -> str:
        """The statistic whose decay is measured."""
        return "delta_log10_rms" if "delta_log10_rms" in self.history else "gradient_log10_rms"

    @cached_property
    def measured_layers(self) -> list[str]:
        """Layers over which the decay is measured. With batch norm, δ of the first depends on the data's scale."""
        return [name for name in self.hidden if self.config.norm != "batch" or layer_number(name) > 1]

    @cached_property
    def change(self) -> xr.DataArray:
        """Decades that the gradient gains from the last hidden layer back to the first, [lane, record]."""
        return decades(self.history[self.profile].sel(layer=self.measured_layers))

    @cached_property
    def healthy(self) -> tuple[float, float]:
        """`change` of the critical draws: mean, and 3 standard deviations; NaN if most of them have a gradient of 0."""
        values = decades(self.reference.draws[self.profile].sel(layer=self.measured_layers)).values
        finite = np.isfinite(values)
        if 2 * finite.sum() < values.size or finite.sum() < 2:
            return np.nan, np.nan
        values = values[finite]
        return float(values.mean()), 3 * float(values.std(ddof=1))

    @cached_property
    def sigma_w2(self) -> tuple[float, float] | None:
        """Smallest and largest σ_w² = ‖W‖²/fan_out of the layers above the first, at the first record."""
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
        text: Explanation,
        severity: Severity | None = None,
    ) -> Finding:
        """Make a finding.

        Args:
          rule: name of the rule.
          shows: which lanes show it, [lane].
          layers: names of the layers that show it.
          when: which records of each lane show it, [lane, record]; None: no steps are named.
          numbers: what was measured, and its bound.
          text: the sentences.
          severity: None: serious if most of the lanes that show it have not learnt.
        """
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
            text.cause,
            text.evidence if of == 1 else f"{text.evidence} ({n} of {of} lanes)",
            text.advice,
        )


def decades(log10_rms: xr.DataArray) -> xr.DataArray:
    """Decades gained from the last layer back to the first: −`decay_of_logs` times the distance between them."""
    numbers = np.array([float(layer_number(str(name))) for name in log10_rms["layer"].values])
    span = np.ptp(numbers) if numbers.size else 0.0
    return -decay_of_logs(log10_rms.astype(np.float64), numbers) * span


def most(shows: xr.DataArray) -> bool:
    """Whether at least half of the lanes show it."""
    return bool(shows.any()) and 2 * int(shows.sum()) >= shows.size


def stays(case: Case, bad: xr.DataArray) -> xr.DataArray:
    """Which lanes are bad to the end or do not learn, [lane], from which records are bad, [lane, record].

    A lane counts if it is bad at the first record and again at its last, or if it is bad at either and has not learnt.
    """
    start, end = bad.isel(record=0), bad.isel(record=case.last)
    return (start & (end | ~case.learnt)) | (end & ~case.learnt)


def update_ratio(case: Case) -> xr.DataArray:
    """‖ΔW‖/‖W‖ of the median layer, [lane, record]."""
    ratio = case.history["update_ratio"].astype(np.float64)
    return ratio.where(np.isfinite(ratio)).median("layer")
