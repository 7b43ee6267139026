"""The clinic examines an initializer or an activation.

It draws an initializer (`draws`) and puts it into networks (`trials`). The report says whether the initializer keeps
JAX's contract, which known variance it has, where it stands on the phase diagram of each activation, how signals pass
through deep networks, and its rank among the built-in initializers. For an activation it gives the critical line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vgjax.activations import Activation, activation, kinks, steepest_slope
from vgjax.analysis import Estimate
from vgjax.clinic import draws, page, trials, verdicts
from vgjax.clinic.draws import SHAPES, DrawnMatrices, Likeness, Spectrum
from vgjax.clinic.page import Line, Picture, Report
from vgjax.clinic.trials import Phase, Place
from vgjax.clinic.verdicts import Verdict
from vgjax.config import Hypers
from vgjax.data.catalogue import load
from vgjax.initializers import Initializer
from vgjax.names import text_of
from vgjax.theory.criticality import critical_line, critical_point
from vgjax.training.checks import check_names
from vgjax.training.parallel import in_float32

ACTIVATIONS = ("tanh", "relu", "sigmoid")
GAINS = {"LeCun, Glorot": 1.0, "He": 2.0}  # σ_w² of square layers

Note = Callable[[str], Any]


class InitializerFindings(NamedTuple):
    """Everything that is measured about an initializer; by activation, if not said otherwise."""

    name: str
    drawn: DrawnMatrices
    kernels: np.ndarray  # of the networks' hidden layers, [seeds, layers, fan_in, fan_out]
    laws: dict[str, Estimate]  # law of the variance → its factor
    like: Likeness | None
    sigma_w2: Estimate
    spectra: dict[tuple[int, int], Spectrum]  # shape → its singular values
    phases: dict[str, Phase]
    lines: dict[str, Line]
    signals: dict[str, xr.Dataset]
    places: dict[str, Place]


class ActivationFindings(NamedTuple):
    """Everything that is measured about an activation; by the name of a gain, if not said otherwise."""

    name: str
    critical: float  # σ_w² at σ_b = 0; NaN: there is none
    q: float  # squared length of signals there
    line: Line
    steepest: float
    kinks: tuple[float, ...]
    gains: dict[str, float]
    phases: dict[str, Phase]
    signals: dict[str, xr.Dataset]


@in_float32
def examine_initializer(
    named: str | Initializer, activations: Sequence[str | Activation] = ACTIVATIONS, note: Note = lambda _: None
) -> Report:
    """Examine an initializer: contract, keys, variance law, spectrum; and phase, signals and training by activation.

    Args:
      named: name, import path or callable.
      activations: names, import paths or callables.
      note: called with a sentence before each long step.

    Raises:
      ValueError: no such name, or a function breaks its contract so that nothing can be measured.
    """
    for phi in activations:
        check_names(replace(trials.DEEP, initializer=named, activation=phi))
        _check_finite(phi)
    found = _measure_initializer(named, activations, note)
    rows = _initializer_verdicts(found)
    pictures = [page.variance_picture(found.drawn)]
    if found.spectra:
        pictures.append(page.spectra_picture(found.spectra))
    if found.lines:
        pictures.append(page.phases_picture(found.lines, {found.name: (found.sigma_w2.low, found.sigma_w2.high)}))
    pictures += [page.signals_picture(found.signals), page.places_picture(found.name, found.places)]
    sentence = verdicts.summary(found.name, rows, found.laws, found.like, found.spectra, found.phases, found.places)
    return Report(
        found.name, sentence, tuple(rows), tuple(pictures), page.INITIALIZER_NOTE, _initializer_numbers(found)
    )


def _measure_initializer(
    named: str | Initializer, activations: Sequence[str | Activation], note: Note
) -> InitializerFindings:
    drawn, data = draws.draw(named), load("digits")
    note("first weights of all initializers")
    contest = trials.Contest(named, data)
    sigma_w2 = draws.variances(drawn)[SHAPES[0]].times(SHAPES[0][0])
    phases: dict[str, Phase] = {}
    lines: dict[str, Line] = {}
    signals: dict[str, xr.Dataset] = {}
    places: dict[str, Place] = {}
    for phi in activations:
        on = text_of(phi)
        note(f"{on}: signals through {len(trials.DEEP.hidden)} layers")
        if not drawn.constant:
            phases[on], lines[on] = trials.phase(phi, sigma_w2), critical_line(phi, 1.0)
        config = replace(trials.DEEP, initializer=named, activation=phi)
        (signals[on],) = trials.compared_signals(config, [Hypers()], data)
        note(f"{on}: {trials.TRAINED.steps} steps of {len(contest.contestants)} initializers")
        places[on] = contest.place(phi)
    return InitializerFindings(
        text_of(named),
        drawn,
        contest.kernels(named),
        draws.laws(drawn),
        draws.nearest_builtin(drawn),
        sigma_w2,
        {} if drawn.constant else {shape: draws.spectrum(drawn, shape) for shape in SHAPES[:2]},
        phases,
        lines,
        signals,
        places,
    )


def _initializer_verdicts(found: InitializerFindings) -> list[Verdict]:
    return [
        *verdicts.judge_contract(found.drawn),
        *verdicts.judge_keys(found.drawn, found.kernels),
        *verdicts.judge_variance(found.drawn, found.laws, found.like, found.sigma_w2),
        *(verdicts.judge_spectrum(shape, one) for shape, one in found.spectra.items()),
        *(verdicts.judge_phase(f"χ₁ with {on}", one) for on, one in found.phases.items()),
        *(verdicts.judge_signal(f"decades of δ lost per layer with {on}", one) for on, one in found.signals.items()),
        *(verdicts.judge_place(on, one) for on, one in found.places.items()),
    ]


def _initializer_numbers(found: InitializerFindings) -> dict[str, Any]:
    return {
        "shapes": [list(shape) for shape in SHAPES],
        "variances": list(draws.variances(found.drawn).values()),
        "means": list(draws.means(found.drawn).values()),
        "laws": found.laws,
        "nearest": found.like,
        "singular_values": {f"{a}×{b}": one for (a, b), one in found.spectra.items()},
        "sigma_w2": found.sigma_w2,
        "phases": found.phases,
        "critical_lines": {on: {"sigma_w2": x, "sigma_b2": y} for on, (x, y) in found.lines.items()},
        "signals": found.signals,
        "places": found.places,
    }


@in_float32
def examine_activation(named: str | Activation, note: Note = lambda _: None) -> Report:
    """Examine an activation: critical line and gain, χ₁ under common initializers, slope, kinks, signals over depth.

    Args:
      named: name, import path or callable.
      note: called with a sentence before each long step.

    Raises:
      ValueError: no such name, or a function that has no gradient or is not finite on −20 … 20.
    """
    check_names(replace(trials.DEEP, initializer="mean_field", activation=named))
    _check_finite(named)
    found = _measure_activation(named, note)
    critical = _critical_sentence(named, found)
    by_phase = [f"{one.name} with {name}" for name, one in found.phases.items() if name != "critical"]
    sentence = f"{found.name}: {critical}. It is {verdicts.listed(by_phase)}. Steepest slope {found.steepest:.4g}, " + (
        f"kinks at {', '.join(f'{x:.4g}' for x in found.kinks)}." if found.kinks else "no kinks."
    )
    marks = {f"{name}, {gain:.4g}": (gain, gain) for name, gain in found.gains.items()}
    by_gain = {f"{name}, σ_w² = {found.gains[name]:.4g}": one for name, one in found.signals.items()}
    pictures: tuple[Picture, ...] = (
        page.phases_picture({found.name: found.line}, marks),
        page.signals_picture(by_gain),
    )
    rows = tuple(_activation_verdicts(found, critical))
    return Report(found.name, sentence, rows, pictures, page.ACTIVATION_NOTE, _activation_numbers(found))


def _measure_activation(named: str | Activation, note: Note) -> ActivationFindings:
    note("critical line")
    critical, q = critical_point(named)
    is_new = np.isfinite(critical) and not np.isclose(critical, list(GAINS.values())).any()
    gains = GAINS | ({"critical": critical} if is_new else {})
    phases = {name: trials.phase(named, Estimate(gain, gain, gain, 1)) for name, gain in gains.items()}
    note(f"signals through {len(trials.DEEP.hidden)} layers")
    config = replace(trials.DEEP, initializer="mean_field", activation=named)
    hypers = [Hypers(sigma_w=math.sqrt(gain)) for gain in gains.values()]
    signals = dict(zip(gains, trials.compared_signals(config, hypers, load("digits")), strict=True))
    line = critical_line(named, 1.0)
    return ActivationFindings(
        text_of(named), critical, q, line, steepest_slope(named), kinks(named), gains, phases, signals
    )


def _critical_sentence(named: str | Activation, found: ActivationFindings) -> str:
    """Where χ₁ = 1, and whether signals get there."""
    if not found.critical > 0:
        return "no σ_w gives χ₁ = 1 without biases"
    critical = found.critical
    where = f"χ₁ = 1 at σ_w = {math.sqrt(critical):.4g} and q* = {found.q:.3g}"
    is_reached = trials.phase(named, Estimate(critical, critical, critical, 1)).name == "critical"
    return where if is_reached else f"{where}, but signals that start at length 1 do not reach that length"


def _activation_verdicts(found: ActivationFindings, critical: str) -> list[Verdict]:
    jumps = ", ".join(f"{x:.4g}" for x in found.kinks)
    return [
        verdicts.without_interval("φ and φ′ on −20 … 20", "finite", "networks can be trained with it", True),
        Verdict("steepest slope", found.steepest, math.nan, math.nan, "sup |φ′|"),
        verdicts.without_interval("kinks", jumps or "none", "φ′ jumps there" if jumps else "φ′ is continuous"),
        Verdict("critical σ_w² at σ_b = 0", found.critical, math.nan, math.nan, critical),
        *(
            verdicts.judge_phase(f"χ₁ at σ_w² = {found.gains[name]:.4g} ({name})", one)
            for name, one in found.phases.items()
        ),
        *(
            verdicts.judge_signal(f"decades of δ lost per layer at σ_w² = {found.gains[name]:.4g}", one)
            for name, one in found.signals.items()
        ),
    ]


def _activation_numbers(found: ActivationFindings) -> dict[str, Any]:
    return {
        "critical_sigma_w2": found.critical,
        "critical_q": found.q,
        "critical_line": {"sigma_w2": found.line[0], "sigma_b2": found.line[1]},
        "steepest_slope": found.steepest,
        "kinks": list(found.kinks),
        "phases": found.phases,
        "signals": found.signals,
    }


def _check_finite(phi: str | Activation) -> None:
    """Refuse an activation that is not finite, or has no finite slope, on −20 … 20."""
    x = np.linspace(-20, 20, 4001, dtype=np.float32)
    values, slopes = jax.jvp(activation(phi), (jnp.asarray(x),), (jnp.ones_like(x),))
    bad = ~np.isfinite(np.asarray(values) + np.asarray(slopes))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"activation {text_of(phi)!r} gives φ = {values[i]} and φ′ = {slopes[i]} at {x[i]:g}; "
            "allowed: finite numbers on −20 … 20"
        )
