"""What all experiments share: the rows and their verdicts, pictures, and data sets or their stand-in."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import matplotlib.figure
import pandas as pd

from experiments.options import Options
from vgjax.analysis import Estimate
from vgjax.config import Config
from vgjax.data.catalogue import Dataset, DataUnavailable, load
from vgjax.report import as_json

Verdict = Literal["reproduced", "differs", "no data"]


@dataclass(frozen=True)
class Row:
    """One checked quantity. `tolerance` was fixed before the run; `interval` is the 95 % interval over seeds."""

    experiment: str
    quantity: str
    source: str
    published: float | None
    predicted: float | None
    measured: float
    interval: tuple[float, float]
    n_seeds: int
    tolerance: str
    verdict: Verdict


@dataclass(frozen=True)
class Picture:
    """A figure, the sentence that says what to look for, and the table behind it."""

    name: str
    figure: matplotlib.figure.Figure
    sentence: str
    table: pd.DataFrame = field(repr=False)


@dataclass(frozen=True)
class Outcome:
    """What one experiment gives: rows, pictures, and notes for the reader."""

    title: str
    rows: list[Row]
    pictures: list[Picture]
    notes: list[str]


class Experiment(Protocol):
    """What the module of an experiment must define.

    `run` returns both the simulation and the theory, as an xarray.Dataset (`attrs["notes"]`) or as a named tuple of
    several (field `notes`). `notes`, a list of sentences for the reader, may be missing. `check` and `plot` use only
    what `run` returned.
    """

    TITLE: str

    def run(self, options: Options) -> Any:
        """Simulate, and compute what theory predicts."""

    def check(self, data: Any) -> list[Row]:
        """The rows of the verdict."""

    def plot(self, data: Any) -> list[Picture]:
        """The figures."""


def outcome_of(experiment: Experiment, options: Options) -> Outcome:
    """Run an experiment, judge its rows and draw its figures."""
    data = experiment.run(options)
    return Outcome(experiment.TITLE, experiment.check(data), experiment.plot(data), list(getattr(data, "notes", ())))


@dataclass(frozen=True)
class Within:
    """A tolerance: by a factor, by a share, by a margin, or between bounds. `str()` words it for the table."""

    factor: float | None = None
    share: float | None = None
    margin: float | None = None
    low: float = -math.inf
    high: float = math.inf

    def holds(self, measured: float, reference: float | None) -> bool:
        """Whether the measured value is within the tolerance of the reference; bounds need no reference."""
        if reference is None and (self.factor, self.share, self.margin) != (None, None, None):
            raise ValueError(f"a tolerance of {self} needs something to be compared with")
        if not math.isfinite(measured):
            return False
        if self.factor is not None and reference is not None:
            return reference / self.factor <= measured <= reference * self.factor
        if self.share is not None and reference is not None:
            return abs(measured - reference) <= self.share * abs(reference)
        if self.margin is not None and reference is not None:
            return abs(measured - reference) <= self.margin
        return self.low <= measured <= self.high

    def __str__(self) -> str:
        if self.factor is not None:
            return f"×/÷ {self.factor:g}"
        if self.share is not None:
            return "exactly" if self.share == 0 else f"± {100 * self.share:g} %"
        if self.margin is not None:
            return f"± {self.margin:g}"
        if math.isinf(self.high):
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if math.isinf(self.low) else f"{self.low:g} to {self.high:g}"


def row(
    experiment: str,
    quantity: str,
    source: str,
    measured: Estimate,
    within: Within,
    *,
    published: float | None = None,
    predicted: float | None = None,
    has_data: bool = True,
) -> Row:
    """Judge a measurement by the published number; without one, by the predicted number; without both, by bounds.

    `has_data=False` says that the data set behind the published number is not available. The published number is then
    dropped, and without a prediction the verdict is "no data".
    """
    published = published if has_data else None
    reference = published if published is not None else predicted
    if not has_data and reference is None:
        verdict: Verdict = "no data"
    else:
        verdict = "reproduced" if within.holds(measured.value, reference) else "differs"
    interval = (measured.low, measured.high)
    return Row(
        experiment, quantity, source, published, predicted, measured.value, interval, measured.n, str(within), verdict
    )


def dataset_or_stand_in(name: str, options: Options) -> tuple[Dataset, str | None]:
    """The data set and None; or, where it cannot be had, digits in its place and a note that says so."""
    try:
        return load(name, options.data_dir, options.manual_dir), None
    except DataUnavailable as error:
        note = (
            f"{name} is not here ({error}). The experiment ran on scikit-learn's digits (8×8 images) instead: what is "
            "published about the real data is not compared; what theory predicts is, for the data that were used."
        )
        return load("digits"), note


def runs_folder(options: Options, experiment: str) -> Path:
    """The folder of an experiment's runs, emptied unless they are resumed. Call it once the data are loaded."""
    folder = options.out / "runs" / experiment
    if not options.resume:
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def shortened_for_smoke(config: Config, options: Options) -> Config:
    """The config; in a smoke run with only its last three hidden layers, which compile faster."""
    return replace(config, hidden=config.hidden[-3:]) if options.smoke else config


def first_examples(data: Dataset, n_train: int, n_test: int) -> Dataset:
    """The first examples of each split."""
    return replace(
        data,
        train_inputs=data.train_inputs[:n_train],
        train_labels=data.train_labels[:n_train],
        test_inputs=data.test_inputs[:n_test],
        test_labels=data.test_labels[:n_test],
    )


def write_json(path: Path, rows: Sequence[Row], environment: dict[str, Any]) -> None:
    """Write `reproduction.json`: the rows and the environment that made them. NaN and infinities become null."""
    content = {"rows": [asdict(row) for row in rows], "environment": environment}
    path.write_text(as_json(content, indent=1) + "\n")
