"""The clinic: an initializer or an activation of one's own, examined on one page.

An initializer is drawn (`draws`) and put into networks (`trials`). The page says whether it keeps JAX's contract, which
known variance it has, where it stands on each activation's phase diagram, what happens to signals, and its rank beside
the built-in initializers. An activation gets its critical line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vgjax.activations import Activation, activation, kinks, steepest_slope
from vgjax.analysis import Estimate, share_estimate
from vgjax.clinic import draws, trials, verdicts
from vgjax.clinic.draws import SHAPES, Draws, Spectrum
from vgjax.clinic.trials import N_SEEDS, Phase, Place
from vgjax.clinic.verdicts import Verdict
from vgjax.config import Hypers
from vgjax.data.catalogue import load
from vgjax.environment import environment
from vgjax.files import whole
from vgjax.initializers import INITIALIZERS, Initializer
from vgjax.names import text_of
from vgjax.report import as_json, write_html
from vgjax.theory.criticality import critical_line, critical_point
from vgjax.training.checks import check_names
from vgjax.training.parallel import in_float32

ACTIVATIONS = ("tanh", "relu", "sigmoid")
COMPARED = ("he_normal", "lecun_normal", "glorot_normal", "orthogonal")
GAINS = {"LeCun, Glorot": 1.0, "He": 2.0}  # σ_w² of square layers

Note = Callable[[str], Any]


class Picture(NamedTuple):
    """A figure, drawn when it is wanted, and the sentence beside it."""

    sentence: str
    draw: Callable[[], Any]


@dataclass(frozen=True)
class Report:
    """What an examination found."""

    name: str
    sentence: str
    """All of it in short."""
    verdicts: tuple[Verdict, ...]
    pictures: tuple[Picture, ...]
    note: str
    """What the intervals are."""
    numbers: dict[str, Any]
    """Every number, those of the figures included."""


@in_float32
def examine_initializer(
    named: str | Initializer, activations: Sequence[str | Activation] = ACTIVATIONS, note: Note = lambda _: None
) -> Report:
    """Examine an initializer: contract, keys, variance law, spectrum; phase, signals and training by activation.

    Args:
      named: name, import path or callable.
      activations: names, import paths or callables.
      note: told what is going on.

    Raises:
      ValueError: no such name, or a function breaks its contract so that nothing can be measured.
    """
    for phi in activations:
        check_names(replace(trials.DEEP, initializer=named, activation=phi))
        _check_finite(phi)
    drawn, data = draws.draw(named), load("digits")
    note("first weights of all initializers")
    contest = trials.Contest(named, data)
    sigma_w2 = _times(draws.variances(drawn)[SHAPES[0]], SHAPES[0][0])
    spectra = {} if drawn.constant else {shape: draws.spectrum(drawn, shape) for shape in SHAPES[:2]}
    like, laws = draws.nearest_builtin(drawn), draws.laws(drawn)
    phases: dict[str, Phase] = {}
    signals: dict[str, xr.Dataset] = {}
    places: dict[str, Place] = {}
    for phi in activations:
        on = text_of(phi)
        note(f"{on}: signals through {len(trials.DEEP.hidden)} layers")
        if not drawn.constant:
            phases[on] = trials.phase(phi, sigma_w2)
        (signals[on],) = trials.signals(replace(trials.DEEP, initializer=named, activation=phi), [Hypers()], data)
        note(f"{on}: {trials.TRAINED.steps} steps of {len(contest.contestants)} initializers")
        places[on] = contest.place(phi)
    found = [
        *verdicts.contract(drawn),
        *verdicts.keys(drawn, contest.kernels(named)),
        *verdicts.law(drawn, laws, like, sigma_w2),
    ]
    found += [verdicts.spectrum(shape, one) for shape, one in spectra.items()]
    found += [verdicts.phase(f"χ₁ with {on}", one) for on, one in phases.items()]
    found += [verdicts.signal(f"decades of δ lost a layer with {on}", one) for on, one in signals.items()]
    found += [verdicts.place(on, one) for on, one in places.items()]
    lines = {on: critical_line(phi, 1.0) for on, phi in zip(phases, activations, strict=False)}
    return Report(
        text_of(named),
        verdicts.sentence(text_of(named), found, laws, like, spectra, phases, places),
        tuple(found),
        tuple(_pictures(text_of(named), drawn, spectra, lines, sigma_w2, signals, places)),
        _NOTE,
        {
            "shapes": [list(shape) for shape in SHAPES],
            "variances": list(draws.variances(drawn).values()),
            "means": list(draws.means(drawn).values()),
            "laws": laws,
            "nearest": like,
            "singular_values": {f"{a}×{b}": one for (a, b), one in spectra.items()},
            "sigma_w2": sigma_w2,
            "phases": phases,
            "critical_lines": {on: {"sigma_w2": x, "sigma_b2": y} for on, (x, y) in lines.items()},
            "signals": signals,
            "places": places,
        },
    )


@in_float32
def examine_activation(named: str | Activation, note: Note = lambda _: None) -> Report:
    """Examine an activation: critical line and gain, χ₁ under common initializers, slope, kinks, signals over depth.

    Args:
      named: name, import path or callable.
      note: told what is going on.

    Raises:
      ValueError: no such name, or a function that has no gradient or is not finite on −20 … 20.
    """
    config = replace(trials.DEEP, initializer="mean_field", activation=named)
    check_names(config)
    _check_finite(named)
    note("critical line")
    critical, q = critical_point(named)
    is_new = np.isfinite(critical) and not np.isclose(critical, list(GAINS.values())).any()
    gains = GAINS | ({"critical": critical} if is_new else {})
    phases = {name: trials.phase(named, Estimate(gain, gain, gain, 1)) for name, gain in gains.items()}
    note(f"signals through {len(trials.DEEP.hidden)} layers")
    hypers = [Hypers(sigma_w=math.sqrt(gain)) for gain in gains.values()]
    signals = dict(zip(gains, trials.signals(config, hypers, load("digits")), strict=True))
    steepest, at = steepest_slope(named), kinks(named)
    edge = "no σ_w makes χ₁ = 1 without biases"
    if critical > 0:
        stays = trials.phase(named, Estimate(critical, critical, critical, 1)).name == "critical"
        left = "" if stays else ", a length that signals of unit length do not come to"
        edge = f"χ₁ = 1 by σ_w = {math.sqrt(critical):.4g}, at q* = {q:.3g}{left}"
    found = [
        verdicts.said("φ and φ′ on −20 … 20", "finite", "can be trained with", True),
        Verdict("steepest slope", steepest, math.nan, math.nan, "sup |φ′|"),
        verdicts.said(
            "kinks", ", ".join(f"{x:.4g}" for x in at) or "none", "where φ′ jumps" if at else "φ′ is continuous"
        ),
        Verdict("critical σ_w² at σ_b = 0", critical, math.nan, math.nan, edge),
        *(verdicts.phase(f"χ₁ at σ_w² = {gains[name]:.4g} ({name})", one) for name, one in phases.items()),
        *(
            verdicts.signal(f"decades of δ lost a layer at σ_w² = {gains[name]:.4g}", one)
            for name, one in signals.items()
        ),
    ]
    name, line, most = text_of(named), critical_line(named, 1.0), max(3.0, 1.5 * max(gains.values()))
    marks = {f"{which}, {gain:.4g}": (gain, gain) for which, gain in gains.items()}
    by_phase = [f"{one.name} under {which}" for which, one in phases.items() if which != "critical"]
    labels = {f"{which}, σ_w² = {gains[which]:.4g}": one for which, one in signals.items()}
    return Report(
        name,
        f"{name}: {edge}. It is {verdicts.listed(by_phase)}. Steepest slope {steepest:.4g}, "
        + (f"kinks at {', '.join(f'{x:.4g}' for x in at)}." if at else "no kinks."),
        tuple(found),
        (
            Picture(_LINES, partial(_draw, "phase_diagrams", {name: line}, marks, most)),
            Picture(_SIGNALS, partial(_draw, "signal", labels, _COLUMNS)),
        ),
        f"δ: geometric mean and 95 % interval over {N_SEEDS} seeds of networks of {len(trials.DEEP.hidden)} layers.",
        {
            "critical_sigma_w2": critical,
            "critical_q": q,
            "critical_line": {"sigma_w2": line[0], "sigma_b2": line[1]},
            "steepest_slope": steepest,
            "kinks": list(at),
            "phases": phases,
            "signals": signals,
        },
    )


def _check_finite(phi: str | Activation) -> None:
    x = np.linspace(-20, 20, 4001, dtype=np.float32)
    values, slopes = jax.jvp(activation(phi), (jnp.asarray(x),), (jnp.ones_like(x),))
    bad = ~np.isfinite(np.asarray(values) + np.asarray(slopes))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"activation {text_of(phi)!r} gives φ = {values[i]} and φ′ = {slopes[i]} at {x[i]:g}; "
            "allowed: finite numbers on −20 … 20"
        )


def _times(one: Estimate, factor: float) -> Estimate:
    return Estimate(factor * one.value, factor * one.low, factor * one.high, one.n)


# The page


_TEST = f"{len(trials.TRAINED.hidden)} layers of {trials.TRAINED.hidden[0]}"
_NOTE = (
    f"Intervals of draws ({draws.N_DRAWS} keys for each shape) are so wide that an initializer without fault passes "
    "all of their questions 95 times of 100. That of χ₁ is over the interval of σ_w². Those of δ "
    f"({len(trials.DEEP.hidden)} layers of {trials.DEEP.hidden[0]}) and accuracy ({_TEST}) are 95 % over {N_SEEDS} "
    "seeds; places are those that the intervals of the differences, all right together, leave open."
)
_LINES = (
    "Left of the line two inputs become alike and gradients vanish (ordered); right of it they part and gradients "
    "explode (chaotic); on it signals keep. Layers are marked at σ_b = 0."
)
_COLUMNS = {"activation_rms": "RMS of activations", "delta_rms": "RMS of δ"}
_SIGNALS = (
    "Lines with points: geometric mean over seeds, with their range. Dashed, with a band: predicted for networks of "
    "independent Gaussian weights with this variance."
)


def _pictures(
    name: str,
    drawn: Draws,
    spectra: dict[tuple[int, int], Spectrum],
    lines: dict[str, tuple[np.ndarray, np.ndarray]],
    sigma_w2: Estimate,
    signals: dict[str, xr.Dataset],
    places: dict[str, Place],
) -> list[Picture]:
    shapes = {f"{a}×{b}": (a, b) for a, b in SHAPES}
    measured = [_times(one, fan_in) for (fan_in, _), one in draws.variances(drawn).items()]
    formulas = {n: [s[0] * INITIALIZERS[n].variance(*s) for s in SHAPES] for n in COMPARED}
    found = [
        Picture(
            "The points lie on the line of the initializer whose variance they have; elsewhere they follow other fans.",
            partial(_draw, "variance_law", list(shapes), measured, formulas),
        )
    ]
    if spectra:
        singular = {f"{a}×{b}": one.singular for (a, b), one in spectra.items()}
        s = {shape: np.linspace(0.01, 1.05 + math.sqrt(min(shape) / max(shape)), 300) for shape in spectra}
        densities = {f"{a}×{b}": (s[a, b], draws.marchenko_pastur(s[a, b], (a, b))) for a, b in spectra}
        sentence = "Dashed: Marchenko and Pastur's density, which independent elements follow. Orthogonal: all at 1."
        found.append(Picture(sentence, partial(_draw, "spectra", singular, densities)))
    if lines:
        most = max(3.0, 1.5 * sigma_w2.high)
        found.append(Picture(_LINES, partial(_draw, "phase_diagrams", lines, {name: sigma_w2[1:3]}, most)))
    accuracy = {on: {n: share_estimate(values) for n, values in one.accuracy.items()} for on, one in places.items()}
    return [
        *found,
        Picture(_SIGNALS, partial(_draw, "signal", signals, _COLUMNS)),
        Picture(
            f"After {trials.TRAINED.steps} steps of SGD on digits, networks of {_TEST} units, "
            f"the same {N_SEEDS} seeds and batches for all: mean validation accuracy and its 95 % interval.",
            partial(_draw, "standings", accuracy, name),
        ),
    ]


def _draw(name: str, *args: Any) -> Any:
    from vgjax.clinic import figures

    return getattr(figures, name)(*args)


def write(report: Report, folder: Path) -> Path:
    """Write the page `clinic.html` and all numbers, `clinic.json`, each whole or not at all.

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
