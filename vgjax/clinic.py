"""The clinic: an initializer or an activation of one's own, examined on one page.

An initializer is drawn (`vgjax.draws`) and put into networks (`vgjax.trials`): does it keep JAX's contract, whose
variance has it, where on each activation's phase diagram does it stand, what becomes of signals, and what place does it
take beside the built-in ones. An activation gets its critical line.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vgjax import draws, theory, trials
from vgjax.activations import Activation, activation, kinks, steepest_slope
from vgjax.analysis import Estimate, estimate
from vgjax.checks import check_names
from vgjax.config import Hypers
from vgjax.data import load
from vgjax.draws import SHAPES, Draws, Spectrum
from vgjax.environment import environment
from vgjax.initializers import INITIALIZERS, Initializer
from vgjax.names import text_of
from vgjax.report import number, write_html
from vgjax.trials import N_SEEDS, Phase, Place

ACTIVATIONS = ("tanh", "relu", "sigmoid")
COMPARED = ("he_normal", "lecun_normal", "glorot_normal", "orthogonal")
GAINS = {"LeCun, Glorot": 1.0, "He": 2.0}  # σ_w² of square layers

Note = Callable[[str], Any]


class Verdict(NamedTuple):
    """One line of the report."""

    what: str
    value: float | str
    low: float
    high: float
    judgement: str
    good: bool | None = None  # None: neither good nor bad in itself


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
    verdicts = [*_contract(drawn), *_keys(drawn, contest.kernels(named)), *_law(drawn, laws, like, sigma_w2)]
    verdicts += [_spectrum(shape, one) for shape, one in spectra.items()]
    verdicts += [_phase(f"χ₁ with {on}", one) for on, one in phases.items()]
    verdicts += [_signal(f"decades of δ lost a layer with {on}", one) for on, one in signals.items()]
    verdicts += [_place(on, one) for on, one in places.items()]
    lines = {on: trials.critical_line(phi, 1.0) for on, phi in zip(phases, activations, strict=False)}
    return Report(
        text_of(named),
        _sentence(text_of(named), verdicts, laws, like, spectra, phases, places),
        tuple(verdicts),
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
    critical, q = theory.critical_point(named)
    gains = GAINS | ({} if np.isnan(critical) or critical in GAINS.values() else {"critical": critical})
    phases = {name: trials.phase(named, Estimate(gain, gain, gain, 1)) for name, gain in gains.items()}
    note(f"signals through {len(trials.DEEP.hidden)} layers")
    hypers = [Hypers(sigma_w=math.sqrt(gain)) for gain in gains.values()]
    signals = dict(zip(gains, trials.signals(config, hypers, load("digits")), strict=True))
    steepest, at = steepest_slope(named), kinks(named)
    none = "no σ_w makes χ₁ = 1 without biases"
    edge = f"σ_w = {math.sqrt(critical):.4g} keeps gradients, at q* = {q:.3g}" if critical > 0 else none
    verdicts = [
        _said("φ and φ′ on −20 … 20", "finite", "can be trained with", True),
        Verdict("steepest slope", steepest, math.nan, math.nan, "sup |φ′|"),
        _said("kinks", ", ".join(f"{x:.4g}" for x in at) or "none", "where φ′ jumps" if at else "φ′ is continuous"),
        Verdict("critical σ_w² at σ_b = 0", critical, math.nan, math.nan, edge),
        *(_phase(f"χ₁ at σ_w² = {gains[name]:.4g} ({name})", one) for name, one in phases.items()),
        *(_signal(f"decades of δ lost a layer at σ_w² = {gains[name]:.4g}", one) for name, one in signals.items()),
    ]
    name, line, most = text_of(named), trials.critical_line(named, 1.0), max(3.0, 1.5 * max(gains.values()))
    marks = {f"{which}, {gain:.4g}": (gain, gain) for which, gain in gains.items()}
    by_phase = [f"{one.name} under {which}" for which, one in phases.items() if which != "critical"]
    labels = {f"{which}, σ_w² = {gains[which]:.4g}": one for which, one in signals.items()}
    return Report(
        name,
        f"{name}: {edge}. It is {_listed(by_phase)}. Steepest slope {steepest:.4g}, "
        + (f"kinks at {', '.join(f'{x:.4g}' for x in at)}." if at else "no kinks."),
        tuple(verdicts),
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


# What the numbers say


def _said(what: str, value: str, judgement: str, good: bool | None = None) -> Verdict:
    return Verdict(what, value, math.nan, math.nan, judgement, good)


def _contract(drawn: Draws) -> list[Verdict]:
    given = ", ".join(p for p in draws.PRECISIONS if p not in drawn.refused)
    refused = "; ".join(f"not {precision}: {reason}" for precision, reason in drawn.refused.items())
    repeatable = "a draw can be repeated" if drawn.repeatable else "a draw cannot be repeated: it comes from elsewhere"
    return [
        _said("f(key, shape, dtype)", given, refused or "gives the shapes and precisions asked for", not refused),
        _said("the same key", "same matrix" if drawn.repeatable else "another", repeatable, drawn.repeatable),
    ]


def _keys(drawn: Draws, kernels: np.ndarray) -> list[Verdict]:
    if drawn.constant:
        judgement = "a constant: all units of a layer compute the same and stay alike"
        return [_said("other elements", "same number", judgement, False)]
    if drawn.ignores_key:
        judgement = "ignores its key: layers of one shape get the same weights, and seeds make no difference"
        return [_said("other keys", "same matrix", judgement, False)]
    pairs = [(net[i], net[i + 1]) for net in kernels for i in range(0, len(net) - 1, 2)]
    found = {"keys": draws.key_correlation(drawn), "layers": draws.correlation(pairs)}
    count = _said("other keys", f"{drawn.distinct} of {draws.N_DRAWS} matrices differ", "every key gives its own", True)
    if drawn.distinct < draws.N_DRAWS:
        count = count._replace(judgement="some keys give the same matrix", good=False)
    return [
        count,
        *(
            Verdict(f"correlation between {what}, RMS of r·√N", *r[:3], _correlated(r), r.low <= 1)
            for what, r in found.items()
        ),
    ]


def _correlated(r: Estimate) -> str:
    return "1 is that of independent matrices" if r.low <= 1 else "more than the 1 of independent matrices: correlated"


def _law(drawn: Draws, laws: dict[str, Estimate], like: draws.Likeness | None, sigma_w2: Estimate) -> list[Verdict]:
    means, variances = draws.means(drawn), draws.variances(drawn)
    centred = all(mean.low <= 0 <= mean.high for mean in means.values())
    found = [
        Verdict("mean of W, 128×128", *means[SHAPES[0]][:3], "0 at all shapes" if centred else "not 0", centred or None)
    ]
    if drawn.constant:
        return found
    for text, k in laws.items():
        found.append(Verdict(f"k of Var(W) = {text.format('k')}", *k[:3], str(like) if like else "no built-in's law"))
    if not laws:
        found += [
            Verdict(f"Var(W), {a}×{b}", *one[:3], "follows none of the laws of fan_in and fan_out")
            for (a, b), one in variances.items()
        ]
    return [*found, Verdict("σ_w² = fan_in · Var(W), square layers of 128", *sigma_w2[:3], "what theory asks for")]


def _spectrum(shape: tuple[int, int], one: Spectrum) -> Verdict:
    if one.all_equal:
        judgement = "all singular values are equal: orthogonal"
    elif one.as_independent:
        judgement = "as Marchenko–Pastur: independent elements"
    else:
        wider = "wider" if one.over_shuffled.value > 1 else "narrower"
        judgement = f"{wider} than Marchenko–Pastur: elements depend on each other"
    what = f"E[s⁴]/E[s²]² over that of shuffled elements, {shape[0]}×{shape[1]}"
    return Verdict(what, *one.over_shuffled[:3], judgement)


def _phase(what: str, one: Phase) -> Verdict:
    factor = math.sqrt(one.chi1.value)
    where = "" if math.isnan(one.critical) else f" (critical at σ_w² = {one.critical:.4g})"
    meaning = {
        "ordered": f"δ shrinks ×{factor:.3g} a layer; trains through about {_layers(one.depth)}",
        "critical": f"trains through {_layers(one.depth)}",
        "chaotic": f"δ grows ×{factor:.3g} a layer; trains through about {_layers(one.depth)}",
    }
    return Verdict(what, *one.chi1[:3], f"{one.name}{where}: {meaning[one.name]}", one.name == "critical" or None)


def _layers(depth: tuple[float, float]) -> str:
    low, high = (f"{layers:.3g}" if layers < 1e4 else "10⁴" for layers in depth)
    if math.isinf(depth[1]):
        return "any depth" if depth[0] > 1e4 else f"{low} layers or more"
    return f"{low} layers" if low == high else f"{low} to {high} layers"


def _signal(what: str, one: xr.Dataset) -> Verdict:
    decay, low, high = (float(one[f"decay{end}"].isel(record=0)) for end in ("", "_low", "_high"))
    middle, least, most = (float(one[f"predicted_decay{end}"]) for end in ("", "_low", "_high"))
    if not math.isfinite(decay):
        return Verdict(what, decay, low, high, "δ is 0 or beyond float32 in some layer", False)
    alike = "as" if least <= decay <= most else "not as"
    return Verdict(what, decay, low, high, f"{alike} in Gaussian networks: {middle:.3g} ({least:.3g} … {most:.3g})")


def _place(on: str, one: Place) -> Verdict:
    n = len(one.accuracy)
    places = f"place {one.best}" if one.best == one.worst else f"place {one.best} to {one.worst}"
    judgement = f"{places} of {n}" + (": no difference can be told" if (one.best, one.worst) == (1, n) else "")
    return Verdict(f"accuracy with {on}, {trials.TRAINED.steps} steps", *one.mean()[:3], judgement)


def _sentence(
    name: str,
    verdicts: Sequence[Verdict],
    laws: dict[str, Estimate],
    like: draws.Likeness | None,
    spectra: dict[tuple[int, int], Spectrum],
    phases: dict[str, Phase],
    places: dict[str, Place],
) -> str:
    faults = [v.judgement for v in verdicts if v.good is False]
    what = [f"Var(W) = {text.format(f'{k.value:.4g}')}" for text, k in laws.items()] if phases else []
    if like:
        what.append(str(like))
    if spectra and all(one.all_equal for one in spectra.values()):
        what.append("orthogonal")
    parts = [f"{name}: {'; '.join([*faults, ', '.join(what)] if what else faults)}."]
    if phases:
        parts.append(f"It is {_listed([f'{one.name} with {on}' for on, one in phases.items()])}.")
    told = [f"{one.best} to {one.worst} with {on}" for on, one in places.items()]
    parts.append(f"Of {len(next(iter(places.values())).accuracy)} initializers it takes place {_listed(told)}.")
    return " ".join(parts)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# The page


_NOTE = (
    f"Intervals of draws ({draws.N_DRAWS} keys for each shape) are so wide that an initializer without fault passes "
    f"all of their questions 95 times of 100. That of χ₁ is over the interval of σ_w². Those of δ ({len(trials.DEEP.hidden)} "
    f"layers of {trials.DEEP.hidden[0]}) and accuracy ({len(trials.TRAINED.hidden)} layers of {trials.TRAINED.hidden[0]}) are 95 % over "
    f"{N_SEEDS} seeds; places are those that the intervals of the differences, all right together, leave open."
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
    accuracy = {on: {n: estimate(values) for n, values in one.accuracy.items()} for on, one in places.items()}
    return [
        *found,
        Picture(_SIGNALS, partial(_draw, "signal", signals, _COLUMNS)),
        Picture(
            f"After {trials.TRAINED.steps} steps of SGD on digits, {len(trials.TRAINED.hidden)} layers of {trials.TRAINED.hidden[0]} units, "
            f"the same {N_SEEDS} seeds and batches for all: mean validation accuracy and its 95 % interval.",
            partial(_draw, "standings", accuracy, name),
        ),
    ]


def _draw(name: str, *args: Any) -> Any:
    from vgjax import figures

    return getattr(figures, name)(*args)


def write(report: Report, folder: Path) -> Path:
    """Write the page `clinic.html` and all numbers, `clinic.json`, each whole or not at all.

    Returns:
      The absolute path of the page.
    """
    made = environment()
    pictures = [(one.sentence, one.draw()) for one in report.pictures]
    content = {"name": report.name, "sentence": report.sentence, "verdicts": [v._asdict() for v in report.verdicts]}
    text = json.dumps(_plain(content | report.numbers | {"environment": made}), ensure_ascii=False, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    page = write_html(folder / "clinic.html", "clinic.html", report=report, pictures=pictures, environment=made)
    temporary = folder / "clinic.json.tmp"
    temporary.write_text(text + "\n")
    os.replace(temporary, folder / "clinic.json")
    return page


def _plain(value: Any) -> Any:
    """For JSON: named fields as objects, arrays as lists, what is not a number as null."""
    if isinstance(value, xr.Dataset):
        return {name: _plain(variable.values) for name, variable in value.variables.items()}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
