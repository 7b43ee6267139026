"""The clinic's numbers in words: one verdict for each line of the report, and a summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from vgjax.analysis import Estimate
from vgjax.clinic import draws, trials
from vgjax.clinic.draws import SHAPES, DrawnMatrices, Likeness, Spectrum
from vgjax.clinic.trials import Phase, Place


class Verdict(NamedTuple):
    """One line of the report."""

    what: str  # what was measured
    value: float | str
    low: float
    high: float
    judgement: str
    good: bool | None = None  # None: neither good nor bad in itself


def without_interval(what: str, value: str, judgement: str, good: bool | None = None) -> Verdict:
    """A line whose value has no interval."""
    return Verdict(what, value, math.nan, math.nan, judgement, good)


def judge_contract(drawn: DrawnMatrices) -> list[Verdict]:
    """Shapes, precisions, and whether a draw can be repeated."""
    given = ", ".join(p for p in draws.PRECISIONS if p not in drawn.refused)
    refused = f"raises in {' and '.join(drawn.refused)}" if drawn.refused else ""
    repeatable = (
        "a draw can be repeated"
        if drawn.repeatable
        else "a draw cannot be repeated: it does not come from the key alone"
    )
    return [
        without_interval(
            "f(key, shape, dtype)",
            given,
            refused or "gives the shapes and precisions that it is asked for",
            not refused or None,
        ),
        without_interval(
            "the same key", "same matrix" if drawn.repeatable else "another matrix", repeatable, drawn.repeatable
        ),
    ]


def judge_keys(drawn: DrawnMatrices, kernels: np.ndarray) -> list[Verdict]:
    """Whether the key matters, and whether draws and layers (`kernels`, [seeds, layers, …]) are independent."""
    if drawn.constant:
        judgement = "a constant: all units of a layer compute the same, and training keeps them equal"
        return [without_interval("other elements", "same number", judgement, False)]
    if drawn.ignores_key:
        judgement = "ignores its key: layers of one shape get the same weights, whatever the seed"
        return [without_interval("other keys", "same matrix", judgement, False)]
    pairs = [(net[i], net[i + 1]) for net in kernels for i in range(0, len(net) - 1, 2)]
    found = {"keys": draws.key_correlation(drawn), "layers": draws.correlation(pairs)}
    count = without_interval(
        "other keys", f"{drawn.distinct} of {draws.N_DRAWS} matrices differ", "every key gives another matrix", True
    )
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
    return "no correlation: independent matrices give 1" if r.low <= 1 else "correlated: independent matrices give 1"


def judge_variance(
    drawn: DrawnMatrices, laws: dict[str, Estimate], like: Likeness | None, sigma_w2: Estimate
) -> list[Verdict]:
    """Mean, law of the variance, the built-in initializer with that variance, and σ_w²."""
    means, variances = draws.means(drawn), draws.variances(drawn)
    centred = all(mean.low <= 0 <= mean.high for mean in means.values())
    found = [
        Verdict("mean of W, 128×128", *means[SHAPES[0]][:3], "0 at all shapes" if centred else "not 0", centred or None)
    ]
    if drawn.constant:
        return found
    for text, k in laws.items():
        found.append(
            Verdict(
                f"k of Var(W) = {text.format('k')}",
                *k[:3],
                str(like) if like else "no built-in initializer has this law",
            )
        )
    if not laws:
        found += [
            Verdict(f"Var(W), {a}×{b}", *one[:3], "follows none of the known laws of fan_in and fan_out")
            for (a, b), one in variances.items()
        ]
    return [
        *found,
        Verdict("σ_w² = fan_in · Var(W), square layers of 128", *sigma_w2[:3], "the parameter of mean-field theory"),
    ]


def judge_spectrum(shape: tuple[int, int], one: Spectrum) -> Verdict:
    """Whether the matrices are orthogonal, or have independent elements, or neither."""
    if one.all_equal:
        judgement = "all singular values are equal: orthogonal"
    elif one.as_independent:
        judgement = "the law of Marchenko and Pastur, as for independent elements"
    else:
        wider = "wider" if one.over_shuffled.value > 1 else "narrower"
        judgement = f"{wider} than the law of Marchenko and Pastur: the elements depend on each other"
    what = f"E[s⁴]/E[s²]² over that of shuffled elements, {shape[0]}×{shape[1]}"
    return Verdict(what, *one.over_shuffled[:3], judgement)


def judge_phase(what: str, one: Phase) -> Verdict:
    """Ordered, critical or chaotic, and how deep a network can be trained."""
    factor = math.sqrt(one.chi1.value)
    where = "" if math.isnan(one.critical) else f" (critical at σ_w² = {one.critical:.4g})"
    meaning = {
        "ordered": f"δ shrinks ×{factor:.3g} per layer; trainable depth: about {_layers(one.depth)}",
        "critical": f"trainable depth: {_layers(one.depth)}",
        "chaotic": f"δ grows ×{factor:.3g} per layer; trainable depth: about {_layers(one.depth)}",
    }
    return Verdict(what, *one.chi1[:3], f"{one.name}{where}: {meaning[one.name]}", one.name == "critical" or None)


def _layers(depth: tuple[float, float]) -> str:
    low, high = (f"{float(f'{layers:.2g}'):g}" for layers in depth)
    if math.isinf(depth[1]):
        return "any" if depth[0] > 1e4 else f"{low} layers or more"
    return f"{low} layers" if low == high else f"{low} to {high} layers"


def judge_signal(what: str, one: xr.Dataset) -> Verdict:
    """Decades that δ loses per layer, and the prediction."""
    decay, low, high = (float(one[f"decay{end}"].isel(record=0)) for end in ("", "_low", "_high"))
    middle, least, most = (float(one[f"predicted_decay{end}"]) for end in ("", "_low", "_high"))
    if not math.isfinite(decay):
        return Verdict(what, decay, low, high, "δ is 0 or beyond float32 in some layer", False)
    alike = "as" if least <= decay <= most else "unlike"
    return Verdict(
        what, decay, low, high, f"{alike} the prediction for Gaussian weights: {middle:.3g} ({least:.3g} … {most:.3g})"
    )


def judge_place(on: str, one: Place) -> Verdict:
    """Accuracy after training, and the place among the built-in initializers."""
    n = len(one.accuracy)
    no_difference = ": the intervals show no difference" if (one.best, one.worst) == (1, n) else ""
    what = f"accuracy with {on}, {trials.TRAINED.steps} steps"
    return Verdict(what, *one.mean()[:3], f"place {one} of {n}{no_difference}")


def summary(
    name: str,
    verdicts: Sequence[Verdict],
    laws: dict[str, Estimate],
    like: Likeness | None,
    spectra: dict[tuple[int, int], Spectrum],
    phases: dict[str, Phase],
    places: dict[str, Place],
) -> str:
    """Faults, law of the variance, phases and places in one line."""
    faults = [v.judgement for v in verdicts if v.good is False]
    what = [f"Var(W) = {text.format(f'{k.value:.4g}')}" for text, k in laws.items()] if phases else []
    if like:
        what.append(str(like))
    if spectra and all(one.all_equal for one in spectra.values()):
        what.append("orthogonal")
    parts = [f"{name}: {'; '.join([*faults, ', '.join(what)] if what else faults)}."]
    if phases:
        parts.append(f"It is {listed([f'{one.name} with {on}' for on, one in phases.items()])}.")
    ranks = [f"{one} with {on}" for on, one in places.items()]
    parts.append(f"Of {len(next(iter(places.values())).accuracy)} initializers it takes place {listed(ranks)}.")
    return " ".join(parts)


def listed(words: Sequence[str]) -> str:
    """The words as "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
