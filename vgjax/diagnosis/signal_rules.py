"""Rules about the signal in the layers: gradients that grow or decay, saturated and dead units.

Decays are compared with draws of the same network at criticality (`Reference`). The comment beside each bound gives
the values of the healthy runs and of the faulty runs in the building half of `experiments/calibration.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from vgjax.activations import SATURATED_SLOPE
from vgjax.diagnosis.advice import initializer_advice, needed_gain, rounded, saturates
from vgjax.diagnosis.case import SATURATED, Case, Explanation, Finding, most, stays
from vgjax.theory.batch_norm import batch_norm_gradient_gain

FALLS = 2.0  # decades over the hidden layers; healthy: up to 0.5, MXNet's ReLU network 1.75; faulty: from 2.2
GROWS = 1.5  # decades over the hidden layers; healthy: up to 0.4; faulty: from 2.3
DEAD = 0.3  # share of the units that are alive in the critical draws; healthy: up to 0.13; faulty: from 0.4
WIDTHS = "taper of the widths"
SHARE = 0.1  # a cause is named if it has at least this share of the decay
SMALLEST = 1e-45  # float32's smallest number; stands for a gain of 0 in a sum of logarithms


def exploding(case: Case) -> Finding | None:
    """The gradient grows on its way back more than in a critical network."""
    return None if case.config.norm == "batch" else _grows(case, "exploding")


def batch_norm(case: Case) -> Finding | None:
    """The gradient grows on its way back because of batch norm."""
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
    evidence = f"the gradient grows by {measured:.1f} decades {_path(case, measured, 0)}; {_critical_band(case)}"
    if rule == "batch_norm":
        before = case.config.norm_at == "pre_activation"
        gain = batch_norm_gradient_gain(case.config.activation, 1.0 if before else max(case.sigma_w2 or (1, 1)))
        numbers["theory_factor_per_layer"] = float(np.sqrt(gain))
        evidence += f"; theory predicts a factor of {np.sqrt(gain):.3g} per layer for batch norm"
        advice = "skip connections (--branch residual or rezero), layer norm, or fewer layers"
        text = Explanation("batch norm over the depth", evidence, advice)
    else:
        numbers["decades_by_cause"] = parts = _parts(case, measured, 0)
        text = Explanation(_causes(parts, 1), evidence, initializer_advice(case))
    return case.found(rule, shows, case.measured_layers, bad, numbers, text)


def dead(case: Case) -> Finding | None:
    """Units whose slope is 0 on every example."""
    if saturates(case.config.activation):
        return None  # the rule `saturated` looks at these activations
    share = case.of_hidden("activation_dead_fraction")
    draws = case.reference.draws["dead_fraction"].sel(layer=case.hidden)
    healthy = draws.mean("draw")
    bound = healthy + np.maximum(DEAD * (1 - healthy), 3 * draws.std("draw"))
    whole_layer = (share == 1).any("layer")
    bad = whole_layer | (share > bound).any("layer")
    shows = stays(case, bad)
    dead_at_end = whole_layer.isel(record=case.last)
    is_most = most(shows)
    if not is_most and not bool(dead_at_end.any()):
        return None
    shows = shows if is_most else dead_at_end
    worst = share.where(shows).max("record").median("lane")
    layers = [name for name in case.hidden if float(worst.sel(layer=name)) > float(bound.sel(layer=name))]
    numbers = {
        "dead_share": dict(zip(case.hidden, worst.values.tolist(), strict=True)),
        "critical_draws": dict(zip(case.hidden, healthy.values.tolist(), strict=True)),
        "bound": dict(zip(case.hidden, bound.values.tolist(), strict=True)),
    }
    at_start = bool((share.isel(record=0).max("layer").where(shows).max()) >= float(worst.max()) - DEAD)
    evidence = (
        f"up to {100 * float(worst.max()):.0f} % of a layer's units have a slope of 0 on every example "
        f"(critical draws: {100 * float(healthy.max()):.0f} %)"
    )
    if dead_at_end.any():
        evidence += f"; in {int(dead_at_end.sum())} of {dead_at_end.size} lanes a whole layer is dead and "
        evidence += "no gradient reaches the layers below it"
    text = _dead_text(case, at_start, evidence)
    return case.found("dead", shows, layers or case.hidden, bad, numbers, text, None if is_most else "warning")


def _dead_text(case: Case, at_start: bool, evidence: str) -> Explanation:
    """Cause and advice for dead units: the start, or the steps."""
    if at_start:
        advice = "leaky_relu, elu or gelu; biases that start at 0 (--sigma-b 0); weights with mean 0"
        return Explanation("initial weights and biases", evidence, advice)
    advice = f"try a learning rate of {rounded(case.hypers.learning_rate / 3)}, leaky_relu, or wider layers"
    return Explanation("learning rate", evidence, advice)


def saturated(case: Case) -> Finding | None:
    """Units on the flat parts of an activation such as sigmoid or tanh."""
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
        cause, advice = "initial biases", f"smaller biases: --sigma-b 0 instead of {case.hypers.sigma_b:g}"
    elif layers == case.hidden[:1] or weights <= 2 * needed_gain(case) ** 2:
        cause, advice = "data scale", "scale the inputs: --scaling standardised (or 1/255 for bytes)"
    else:
        cause, advice = "weight gain", f"smaller initial weights: {initializer_advice(case)}"
    numbers = {
        "saturated_share": dict(zip(case.hidden, worst.values.tolist(), strict=True)),
        "critical_draws": dict(zip(case.hidden, healthy.values.astype(float).tolist(), strict=True)),
        "bound": SATURATED,
    }
    evidence = (
        f"a layer's slope is below {SATURATED_SLOPE:g} of the steepest for up to {100 * float(worst.max()):.0f} % of "
        f"its units and examples (healthy: at most {100 * SATURATED:.0f} %)"
    )
    return case.found("saturated", shows, layers, bad, numbers, Explanation(cause, evidence, advice))


def vanishing(case: Case) -> Finding | None:
    """The gradient decays on its way back more than in a critical network, at the start or in a run that fails."""
    if found := _no_gradient(case):
        return found
    centre, half = case.healthy
    bound = centre - max(FALLS, half)
    bad = case.change < bound
    shows = bad.isel(record=0) | (bad.isel(record=case.last) & ~case.learnt)
    if not most(shows):
        return None
    onset = int((bad & shows).sum("lane").argmax("record"))
    measured = float(case.change.isel(record=onset).median("lane"))
    numbers = _profile_numbers(case, measured, bound)
    if np.isinf(measured):
        zero = (case.history[case.profile].isel(record=onset) == -np.inf).astype(float).where(shows).median("lane") > 0
        layers = [name for name in case.measured_layers if bool(zero.sel(layer=name))]
        at = case.history["step"].values[onset]
        evidence = f"the gradient is exactly 0 in {', '.join(layers)} at step {at}; {_critical_band(case)}"
        text = Explanation("slopes or weights of 0, or numbers below float32", evidence, initializer_advice(case))
        return case.found("vanishing", shows, layers, bad, numbers, text)
    numbers["decades_by_cause"] = parts = _parts(case, measured, onset)
    logs = case.history[case.profile].isel(record=onset).median("lane").astype(np.float64)
    below = logs.sel(layer=case.measured_layers) - logs.sel(layer=case.measured_layers[-1])
    layers = [name for name in case.measured_layers if float(below.sel(layer=name)) < -1] or case.measured_layers[:1]
    by_cause = "; ".join(f"{name} {round(part, 1) + 0.0:+.1f}" for name, part in parts.items())
    evidence = f"the gradient falls by {-measured:.1f} decades {_path(case, measured, onset)} (by cause: {by_cause}); "
    text = Explanation(_causes(parts, -1), evidence + _critical_band(case), initializer_advice(case))
    return case.found("vanishing", shows, layers, bad, numbers, text)


def _no_gradient(case: Case) -> Finding | None:
    """Find a gradient that is 0 even in the last hidden layer, at every record: no decay can be measured."""
    layers = case.measured_layers
    zero = (case.history[case.profile].sel(layer=layers) == -np.inf).all("layer")
    shows = zero.all("record") & ~case.learnt
    if not layers or not most(shows):
        return None
    evidence = f"the gradient is exactly 0 in every layer from {layers[0]} to {layers[-1]}, at every recorded step"
    if case.config.norm == "batch" and case.config.batch_size == case.config.replicas:
        text = Explanation("batch norm of a single example", evidence, "a larger --batch-size, or --norm layer")
    else:
        text = Explanation("slopes or weights of 0", evidence, initializer_advice(case))
    return case.found("vanishing", shows, layers, zero, {"statistic": case.profile}, text)


def _parts(case: Case, total: float, record: int) -> dict[str, float]:
    """Split a decay into decades by cause: weights, slopes, and the rest, each relative to what keeps δ's length.

    Weights come first, because the user chooses them first. The widths have a part because an RMS divides by the
    number of units.
    """
    between, gain_needed = case.measured_layers[:-1], needed_gain(case)
    start = case.history.isel(record=record).median("lane")
    rest = "normalisation" if case.config.norm != "none" else "alignment of weights and gradient"
    if case.config.branch != "plain":
        rest = "skip connections"
    fans = case.history["fan_out"].sel(layer=case.measured_layers).values
    widths = float(np.log10(fans[-1] / fans[0]) / 2)
    if "decay_weight_gain" in start:
        gain, slope = (_values(start[f"decay_{name}"], between) for name in ("weight_gain", "slope"))
        weights, slopes = _log_sum(gain / gain_needed), _log_sum(slope * gain_needed)
        named = {"weight gain": weights, "slope of the activation": slopes, rest: total - weights - slopes - widths}
        return named | ({WIDTHS: widths} if widths else {})
    if "weight_norm" in start:
        norm = start["weight_norm"].sel(layer=case.measured_layers[1:])
        weights = _log_sum(norm.values.astype(np.float64) / np.sqrt(norm["fan_out"].values) / gain_needed)
        return {"weight gain": weights, "slope of the activation": total - weights - widths, WIDTHS: widths}
    return {"weight gain or slope of the activation": total - widths, WIDTHS: widths}


def _values(statistic: xr.DataArray, layers: list[str]) -> np.ndarray:
    return statistic.sel(layer=layers).values.astype(np.float64)


def _causes(parts: Mapping[str, float], sign: int) -> str:
    """The causes of a growth (sign 1) or a decay (sign −1), without the widths, which are no fault."""
    parts = {name: sign * part for name, part in parts.items() if name != WIDTHS}
    total = sum(parts.values())
    named = [name for name, part in parts.items() if part >= SHARE * total]
    return ", ".join(named or [max(parts, key=parts.__getitem__)])


def _log_sum(factors: np.ndarray) -> float:
    return float(np.log10(np.maximum(factors, SMALLEST)).sum())


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


def _critical_band(case: Case) -> str:
    centre, half = case.healthy
    return f"in critical networks of this size it changes by {centre - half:+.1f} to {centre + half:+.1f} decades"


def _path(case: Case, measured: float, record: int) -> str:
    """From which layer to which the gradient changes, when, and by what factor."""
    layers, at = case.measured_layers, case.history["step"].values[record]
    factor = 10 ** (abs(measured) / max(1, len(layers) - 1))
    return f"from {layers[-1]} back to {layers[0]} at step {at}, a factor of {factor:.3g} per layer"
