"""The clinic's report: its sentence, verdicts, pictures and numbers, and the page that shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from vgjax.analysis import share_estimate
from vgjax.clinic import draws, trials
from vgjax.clinic.draws import SHAPES, DrawnMatrices, Spectrum
from vgjax.clinic.trials import N_SEEDS, Place
from vgjax.clinic.verdicts import Verdict
from vgjax.environment import environment
from vgjax.files import whole
from vgjax.initializers import INITIALIZERS
from vgjax.report import as_json, write_html

COMPARED = ("he_normal", "lecun_normal", "glorot_normal", "orthogonal")  # drawn beside the examined initializer
COLUMNS = {"activation_rms": "RMS of activations", "delta_rms": "RMS of δ"}
NETWORKS = f"{len(trials.TRAINED.hidden)} layers of {trials.TRAINED.hidden[0]} units"

PHASES_CAPTION = (
    "Left of the line two different inputs become alike and gradients vanish (ordered). Right of it the inputs become "
    "more different and gradients explode (chaotic). On it gradients keep their size. Marks: layers with σ_b = 0."
)
SIGNALS_CAPTION = (
    "Lines with points: geometric mean and range of the seeds. Dashed lines with a band: prediction for "
    "independent Gaussian weights of this variance."
)
VARIANCE_CAPTION = (
    "The points lie on the line of the initializer that has the same variance; on no line if the variance depends on "
    "fan_in and fan_out in another way."
)
SPECTRA_CAPTION = (
    "Dashed: density of Marchenko and Pastur, for independent elements. The singular values of orthogonal matrices are "
    "all 1."
)
PLACES_CAPTION = (
    f"Validation accuracy after {trials.TRAINED.steps} steps of SGD on digits, in networks of {NETWORKS}: mean and "
    f"95 % interval over the same {N_SEEDS} seeds and batches."
)
INITIALIZER_NOTE = (
    f"The intervals of the draws ({draws.N_DRAWS} keys for each shape) are so wide that a correct initializer passes "
    "all of these questions in 95 % of examinations. The interval of χ₁ covers the interval of σ_w². The intervals of "
    f"δ ({len(trials.DEEP.hidden)} layers of {trials.DEEP.hidden[0]} units) and of the accuracy ({NETWORKS}) are 95 % "
    f"intervals over {N_SEEDS} seeds. The places are those that the intervals of the differences leave possible; these "
    "intervals hold together in 95 % of examinations."
)
ACTIVATION_NOTE = (
    f"δ: geometric mean and 95 % interval over {N_SEEDS} seeds of networks of {len(trials.DEEP.hidden)} layers."
)

Line = tuple[np.ndarray, np.ndarray]  # σ_w² and σ_b² along a critical line


class Picture(NamedTuple):
    """A caption, and the function that draws the figure."""

    sentence: str
    draw: Callable[[], Any]


@dataclass(frozen=True)
class Report:
    """What an examination found."""

    name: str
    sentence: str
    """A summary."""
    verdicts: tuple[Verdict, ...]
    pictures: tuple[Picture, ...]
    note: str
    """What the intervals mean."""
    numbers: dict[str, Any]
    """All numbers, those of the figures too."""


def variance_picture(drawn: DrawnMatrices) -> Picture:
    """fan_in · Var(W) for each shape, beside built-in initializers."""
    shapes = [f"{a}×{b}" for a, b in SHAPES]
    measured = [one.times(fan_in) for (fan_in, _), one in draws.variances(drawn).items()]
    formulas = {n: [s[0] * INITIALIZERS[n].variance(*s) for s in SHAPES] for n in COMPARED}
    return _picture(VARIANCE_CAPTION, "variance_law", shapes, measured, formulas)


def spectra_picture(spectra: Mapping[tuple[int, int], Spectrum]) -> Picture:
    """Singular values, beside those of independent elements."""
    singular = {f"{a}×{b}": one.singular for (a, b), one in spectra.items()}
    s = {shape: np.linspace(0.01, 1.05 + math.sqrt(min(shape) / max(shape)), 300) for shape in spectra}
    densities = {f"{a}×{b}": (s[a, b], draws.marchenko_pastur(s[a, b], (a, b))) for a, b in spectra}
    return _picture(SPECTRA_CAPTION, "spectra", singular, densities)


def phases_picture(lines: Mapping[str, Line], marks: Mapping[str, tuple[float, float]]) -> Picture:
    """Critical lines, and marks at σ_b = 0: a name → the smallest and the largest σ_w²."""
    most = max(3.0, *(1.5 * high for _, high in marks.values()))
    return _picture(PHASES_CAPTION, "phase_diagrams", lines, marks, most)


def signals_picture(signals: Mapping[str, xr.Dataset]) -> Picture:
    """Activations and δ over the layers, measured and predicted."""
    return Picture(SIGNALS_CAPTION, partial(_draw_signals, signals))


def places_picture(name: str, places: Mapping[str, Place]) -> Picture:
    """Accuracy of all initializers after training, a panel for each activation."""
    accuracy = {on: {n: share_estimate(values) for n, values in one.accuracy.items()} for on, one in places.items()}
    return _picture(PLACES_CAPTION, "standings", accuracy, name)


def _picture(caption: str, figure: str, *args: Any) -> Picture:
    return Picture(caption, partial(_draw, figure, *args))


def _draw(figure: str, *args: Any) -> Any:
    """Call a function of `clinic_figures`, which imports matplotlib."""
    from vgjax.clinic import clinic_figures

    return getattr(clinic_figures, figure)(*args)


def _draw_signals(signals: Mapping[str, xr.Dataset]) -> Any:
    from vgjax.figures import signal

    return signal(signals, COLUMNS)


def write_report(report: Report, folder: Path) -> Path:
    """Write the page `clinic.html` and the numbers `clinic.json`, each complete or not at all.

    Returns:
      The absolute path of the page.
    """
    made = environment()
    pictures = [(one.sentence, one.draw()) for one in report.pictures]
    content = {"name": report.name, "sentence": report.sentence, "verdicts": [v._asdict() for v in report.verdicts]}
    text = as_json(content | report.numbers | {"environment": made})
    folder.mkdir(parents=True, exist_ok=True)
    page = write_html(folder / "clinic.html", "clinic/clinic.html", report=report, pictures=pictures, environment=made)
    with whole(folder / "clinic.json") as temporary:
        temporary.write_text(text + "\n")
    return page
