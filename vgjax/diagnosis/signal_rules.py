"""What can be wrong with the signal on its way through the layers: growth, decay, saturated and dead units.

Decays are compared with draws of the same network at criticality (`Reference`). Beside each bound stand the
healthy runs of the building half of `experiments/calibration.py`, and those with that fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vgjax.activations import SATURATED_SLOPE
from vgjax.diagnosis.advice import cure, need, rounded, saturates
from vgjax.diagnosis.case import NOTHING, SATURATED, Case, Finding, most, stays
from vgjax.theory.batch_norm import batch_norm_gradient_gain

FALLS = 2.0  # decades over the hidden layers; healthy up to 0.5, MXNet's ReLU network lives with 1.75; from 2.2
GROWS = 1.5  # decades over the hidden layers; healthy up to 0.4; from 2.3
DEAD = 0.3  # share of the units that the critical draws have alive; healthy up to 0.13; from 0.4
WIDTHS = "taper of the widths"
SHARE = 0.1  # of the decay: what has less of it is not named as its cause


def exploding(case: Case) -> Finding | None:
    """The gradient grows on its way back, more than a critical network's."""
    return None if case.config.norm == "batch" else _grows(case, "exploding")


def batch_norm(case: Case) -> Finding | None:
    """The same behind batch norm, where it comes of the norm itself."""
    return _grows(case, "batch_norm") if case.config.norm == "batch" else None


def _grows(case: Case, rule: str) -> Finding | None:
    centre, half = case.healthy
    bound = centre + max(GROWS, half)
    bad = case.change > bound
    shows = bad.isel(record=0)
    if not most(shows):
        return None
    measured = float(case.change.isel(record=0).median("lane"))
    numbers = _profile_numbers(case, measured, bound)
    evidence = f"the gradient grows by {measured:.1f} decades {_way(case, measured, 0)}; {_band(case)}"
    if rule == "batch_norm":
        before = case.config.norm_at == "pre_activation"
        gain = batch_norm_gradient_gain(case.config.activation, 1.0 if before else max(case.sigma_w2 or (1, 1)))
        numbers["theory_factor_per_layer"] = float(np.sqrt(gain))
        evidence += f"; theory for batch norm: a factor {np.sqrt(gain):.3g} a layer"
        advice = "skip connections (--branch residual or rezero), layer norm, or fewer layers"
        return case.found(rule, shows, case.level, bad, numbers, "batch norm over the depth", evidence, advice)
    parts = _parts(case, measured, 0)
    numbers["decades_by_cause"] = parts
    return case.found(rule, shows, case.level, bad, numbers, _causes(parts, 1), evidence, cure(case))


def dead(case: Case) -> Finding | None:
    """Units whose slope is zero on every example."""
    if saturates(case.config.activation):
        return None  # these call it saturated
    share = case.of_hidden("activation_dead_fraction")
    draws = case.reference.draws["dead_fraction"].sel(layer=case.hidden)
    healthy = draws.mean("draw")
    bound = healthy + np.maximum(DEAD * (1 - healthy), 3 * draws.std("draw"))
    whole = (share == 1).any("layer")
    shows = stays(case, whole | (share > bound).any("layer"))
    gone = whole.isel(record=case.last)
    if not most(shows) and not bool(gone.any()):
        return None
    shows = shows if most(shows) else gone
    worst = share.where(shows).max("record").median("lane")
    layers = [name for name in case.hidden if float(worst.sel(layer=name)) > float(bound.sel(layer=name))]
    at_start = bool((share.isel(record=0).max("layer").where(shows).max()) >= float(worst.max()) - DEAD)
    cause = "initial weights and biases" if at_start else "learning rate"
    ends = (
        f"; a whole layer in {int(gone.sum())} of {gone.size}, which stops every gradient below" if gone.any() else ""
    )
    advice = "leaky_relu, elu or gelu; biases that start at 0 (--sigma-b 0) and weights without a mean"
    if not at_start:
        advice = f"try a learning rate of {rounded(case.hypers.learning_rate / 3)}, leaky_relu, or wider layers"
    return case.found(
        "dead",
        shows,
        layers or case.hidden,
        whole | (share > bound).any("layer"),
        {
            "dead_share": dict(zip(case.hidden, worst.values.tolist(), strict=True)),
            "critical_draws": dict(zip(case.hidden, healthy.values.tolist(), strict=True)),
            "bound": dict(zip(case.hidden, bound.values.tolist(), strict=True)),
        },
        cause,
        f"up to {100 * float(worst.max()):.0f} % of a layer's units have a slope of 0 on every example "
        f"(critical draws: {100 * float(healthy.max()):.0f} %){ends}",
        advice,
        None if most(shows) else "warning",
    )


def saturated(case: Case) -> Finding | None:
    """Units on the flat ends of a sigmoid."""
    if not saturates(case.config.activation):
        return None
    share = case.of_hidden("activation_saturated_fraction")
    bad = share.max("layer") > SATURATED
    shows = stays(case, bad)
    if not most(shows):
        return None
    worst = share.where(shows).max("record").median("lane")
    layers = [name for name in case.hidden if float(worst.sel(layer=name)) > SATURATED]
    healthy = case.reference.draws["saturated_fraction"].sel(layer=case.hidden).mean("draw")
    at_start = most(bad.isel(record=0))
    weights = max(case.sigma_w2 or (1.0, 1.0))
    if not at_start:
        cause, advice = "learning rate", f"try a learning rate of {rounded(case.hypers.learning_rate / 10)}"
    elif case.hypers.sigma_b**2 > max(weights, 1.0):
        cause, advice = "initial biases", f"smaller biases: --sigma-b 0, here {case.hypers.sigma_b:g}"
    elif layers == case.hidden[:1] or weights <= 2 * need(case) ** 2:
        cause, advice = "data scale", "scale the inputs: --scaling standardised (or 1/255 for bytes)"
    else:
        cause, advice = "weight gain", f"smaller initial weights: {cure(case)}"
    return case.found(
        "saturated",
        shows,
        layers,
        bad,
        {
            "saturated_share": dict(zip(case.hidden, worst.values.tolist(), strict=True)),
            "critical_draws": dict(zip(case.hidden, healthy.values.astype(float).tolist(), strict=True)),
            "bound": SATURATED,
        },
        cause,
        f"up to {100 * float(worst.max()):.0f} % of a layer's units and examples have a slope below "
        f"{SATURATED_SLOPE:g} of the steepest (healthy: at most {100 * SATURATED:.0f} %)",
        advice,
    )


def vanishing(case: Case) -> Finding | None:
    """The gradient decays on its way back, more than a critical one's, at the start or at an end without success."""
    if found := _nothing_left(case):
        return found
    centre, half = case.healthy
    bound = centre - max(FALLS, half)
    bad = case.change < bound
    shows = bad.isel(record=0) | (bad.isel(record=case.last) & ~case.learnt)
    if not most(shows):
        return None
    onset = int((bad & shows).sum("lane").argmax("record"))
    measured = float(case.change.isel(record=onset).median("lane"))
    parts = _parts(case, measured, onset)
    logs = case.history[case.profile].isel(record=onset).median("lane").astype(np.float64)
    below = logs.sel(layer=case.level) - logs.sel(layer=case.level[-1])
    layers = [name for name in case.level if float(below.sel(layer=name)) < -1] or case.level[:1]
    named = "; ".join(f"{name} {round(part, 1) + 0.0:+.1f}" for name, part in parts.items())
    return case.found(
        "vanishing",
        shows,
        layers,
        bad,
        _profile_numbers(case, measured, bound) | {"decades_by_cause": parts},
        _causes(parts, -1),
        f"the gradient falls by {-measured:.1f} decades {_way(case, measured, onset)} (by cause: {named}); "
        f"{_band(case)}",
        cure(case),
    )


def _nothing_left(case: Case) -> Finding | None:
    """Not even the last hidden layer has a gradient, so that there is no decay to be measured."""
    gone = (case.history[case.profile].sel(layer=case.level) == -np.inf).all("layer")
    shows = gone.all("record") & ~case.learnt
    if not case.level or not most(shows):
        return None
    alone = case.config.norm == "batch" and case.config.batch_size == case.config.replicas
    return case.found(
        "vanishing",
        shows,
        case.level,
        gone,
        {"statistic": case.profile},
        "batch norm of a single example" if alone else "slopes or weights of 0",
        f"the gradient is exactly 0 in every layer from {case.level[0]} to {case.level[-1]}, at every recorded step",
        "a larger --batch-size, or --norm layer" if alone else cure(case),
    )


def _parts(case: Case, total: float, record: int) -> dict[str, float]:
    """The decades that weights, slopes and the rest have in it, against what keeps δ's length.

    Weights are what is chosen first, so they are named first. The widths' share is only that an RMS counts units.
    """
    between, gain_needed, start = case.level[:-1], need(case), case.history.isel(record=record).median("lane")
    rest = "normalisation" if case.config.norm != "none" else "alignment of weights and gradient"
    if case.config.branch != "plain":
        rest = "skip connections"
    fans = case.history["fan_out"].sel(layer=case.level).values
    widths = float(np.log10(fans[-1] / fans[0]) / 2)
    if "decay_weight_gain" in start:
        gain, slope = (
            start[f"decay_{name}"].sel(layer=between).values.astype(np.float64) for name in ("weight_gain", "slope")
        )
        weights, slopes = _log_sum(gain / gain_needed), _log_sum(slope * gain_needed)
        named = {"weight gain": weights, "slope of the activation": slopes, rest: total - weights - slopes - widths}
        return named | ({WIDTHS: widths} if widths else {})
    if "weight_norm" in start:
        norm = start["weight_norm"].sel(layer=case.level[1:])
        weights = _log_sum(norm.values.astype(np.float64) / np.sqrt(norm["fan_out"].values) / gain_needed)
        return {"weight gain": weights, "slope of the activation": total - weights - widths, WIDTHS: widths}
    return {"weight gain or slope of the activation": total - widths, WIDTHS: widths}


def _causes(parts: Mapping[str, float], sign: int) -> str:
    """The parts that have their share in a growth (1) or decay (−1); the widths have no fault."""
    parts = {name: sign * part for name, part in parts.items() if name != WIDTHS}
    whole = sum(parts.values())
    return ", ".join(
        [name for name, part in parts.items() if part >= SHARE * whole] or [max(parts, key=parts.__getitem__)]
    )


def _log_sum(factors: np.ndarray) -> float:
    return float(np.log10(np.maximum(factors, 10**NOTHING)).sum())


def _profile_numbers(case: Case, measured: float, bound: float) -> dict[str, Any]:
    centre, half = case.healthy
    sigma = case.sigma_w2
    return {
        "statistic": case.profile,
        "decades": measured,
        "critical_band": [centre - half, centre + half],
        "bound": bound,
        "critical_sigma_w2": case.reference.sigma_w2,
        "sigma_w2": None if sigma is None else list(sigma),
        "reference_inputs": case.reference.inputs,
    }


def _band(case: Case) -> str:
    centre, half = case.healthy
    return f"critical networks of this size change it by {centre - half:+.1f} to {centre + half:+.1f}"


def _way(case: Case, measured: float, record: int) -> str:
    factor = 10 ** (abs(measured) / max(1, len(case.level) - 1))
    at = case.history["step"].values[record]
    return f"from {case.level[-1]} back to {case.level[0]} at step {at}, a factor {factor:.3g} a layer"
