"""What can be wrong with a network, rule by rule: each looks at the lanes of one setting and gives a finding or none.

A rule compares ratios, shares and decades, so that no unit matters. What a decay is compared with comes from draws of
the same network at criticality (`Case.reference`). The other bounds were set on the runs of
`experiments/calibration.py` with an even number, and tried on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vgjax.activations import SATURATED_SLOPE, activation, steepest_slope
from vgjax.config import Config, Hypers
from vgjax.names import text_of
from vgjax.theory import batch_norm_gradient_gain

Severity = Literal["serious", "warning"]

# Beside each bound: healthy runs of the building half, and those of its label (or the documents' runs).
LEARNT = 0.2  # share of chance's loss that a run must lose to have learnt; healthy 0.75 and more
FALLS = 2.0  # decades over the hidden layers; healthy up to 0.5, MXNet's ReLU network lives with 1.75; from 2.2
GROWS = 1.5  # decades over the hidden layers; healthy up to 0.4; from 2.3
SATURATED = 0.5  # share of a layer's units and examples; healthy up to 0.2; from 0.86
DEAD = 0.3  # share of a layer's units beyond that of the critical draws; healthy up to 0.13; from 0.4
FAST = 0.12  # ‖ΔW‖/‖W‖ of one step, in half of the layers; healthy up to 0.04; from 0.37
SHORT = 0.01  # Σ‖ΔW‖/‖W‖ over the run, in every layer; healthy from 0.14; up to 0.0003
TURNED = 0.95  # cosine between the gradient before and after clipping; healthy 1
LOST = 0.3  # share of a layer's nonzero gradient elements; healthy up to 0.002; 1
SHARE = 0.1  # of the decay: what has less of it is not named as its cause
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
        return [name for name in map(str, self.history["layer"].values) if number(name) <= len(self.config.hidden)]

    @cached_property
    def chance(self) -> float:
        """Loss of an even guess, or of the first step where the last layer is not recorded [nats]."""
        names = list(map(str, self.history["layer"].values))
        if number(names[-1]) > len(self.config.hidden):
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
        return [name for name in self.hidden if self.config.norm != "batch" or number(name) > 1]

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


def number(layer: str) -> int:
    """5 of layer_5."""
    return int(layer.rpartition("_")[2])


def decades(log10_rms: xr.DataArray) -> xr.DataArray:
    """Decades gained from the last layer to the first, by a least-squares line over the layers; fewer than two: 0."""
    logs = log10_rms.astype(np.float64)
    logs = logs.where(logs != -np.inf, NOTHING)
    x = xr.DataArray([float(number(str(name))) for name in logs["layer"].values], dims="layer")
    x = x - x.mean()
    if x.size < 2:
        return 0 * logs.sum("layer", skipna=False)
    slope = (logs * x).sum("layer", skipna=False) / float((x**2).sum())
    return -slope * float(x.max() - x.min())


def most(shows: xr.DataArray) -> bool:
    """Whether half of the lanes or more show it, so that the median lane does."""
    return bool(shows.any()) and 2 * int(shows.sum()) >= shows.size


def _stays(case: Case, bad: xr.DataArray) -> xr.DataArray:
    """[lane, record] → which lanes suffer from it: from the start, unless they recover and learn; or at a dull end."""
    start, end = bad.isel(record=0), bad.isel(record=case.last)
    return (start & (end | ~case.learnt)) | (end & ~case.learnt)


# The rules


def nan(case: Case) -> Finding | None:
    """A lane left the finite numbers."""
    step = case.history["first_bad_step"]
    shows = step >= 0
    if not bool(shows.any()):
        return None
    first = int(step.where(shows).argmin("lane"))
    lane = case.history.isel(lane=first)
    at, layer, where = (lane[f"first_bad_{what}"].item() for what in ("step", "layer", "in"))
    numbers: dict[str, Any] = {"first_bad_step": at, "first_bad_layer": layer, "first_bad_in": where}
    cause, ratio = "learning rate", np.nan
    if at == 0 and where != "update":
        cause = "weight gain" if where == "forward" else "weight gain, over the depth"
    elif "update_ratio" in case.history:
        ratio = float(_update_ratio(case).isel(lane=first).max())
        numbers |= {"update_ratio": ratio, "update_ratio_bound": FAST}
        cause = "learning rate" if ratio > FAST or at > 0 else "weight gain"
    elif at == 0:
        cause = "weight gain"
    what = "update of the weights" if where == "update" else f"{where} pass"
    evidence = f"NaN or infinity from step {at} on, first in {layer}, in the {what}"
    if ratio == ratio:
        evidence += f"; before that ‖ΔW‖/‖W‖ of a step reached {ratio:.2g}"
    advice = f"try a learning rate of {case.hypers.learning_rate / 10:.2g} or less, or --clip global_norm"
    if cause.startswith("weight gain"):
        advice = f"smaller initial weights: {_cure(case)}"
    return case.found("nan", shows, [layer], None, numbers, cause, evidence, advice, "serious")


def constant(case: Case) -> Finding | None:
    """All units of a layer are copies of each other, and training cannot part them."""
    history, copies = case.history, []
    if case.hypers.sigma_b > 0:
        return None
    counts = history["weight_histogram"].isel(record=0).values.astype(np.int64)
    gradients = history["gradient_histogram"].isel(record=0).values if "gradient_histogram" in history else None
    names, fans = list(map(str, history["layer"].values)), history["fan_out"].values
    for i, name in enumerate(names[:-1]):
        width = int(fans[i])
        # A histogram of n equal columns (or rows) has multiples of n alone.
        is_below = number(names[i + 1]) == number(name) + 1
        if width < 2 or not is_below or (counts[:, i : i + 2] % width).any():
            continue
        if gradients is None or _near_multiples(gradients[:, i], width):
            copies.append(name)
    if not copies:
        return None
    zero = bool((history["weight_norm"].isel(record=0).sel(layer=copies) == 0).all()) if "weight_norm" in history else 0
    shows = xr.ones_like(history["first_bad_step"], dtype=bool)
    cause = f"initializer: weights that are {'zero' if zero else 'equal'}"
    return case.found(
        "constant",
        shows,
        copies,
        history["step"] == history["step"][0],
        {"units_that_differ": 1, "units": [int(fans[names.index(name)]) for name in copies]},
        cause,
        f"all units of {copies[0]} start as copies of each other, and get the same gradient at every step",
        f"draw the weights at random: {_cure(case)}",
        "serious",
    )


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
    causes = [name for name, part in parts.items() if part >= SHARE * measured] or [max(parts, key=parts.__getitem__)]
    return case.found(rule, shows, case.level, bad, numbers, ", ".join(causes), evidence, _cure(case))


def learning_rate_high(case: Case) -> Finding | None:
    """Steps as large as the weights, and nothing learnt."""
    ratio = _update_ratio(case)
    bad = ratio > FAST
    shows = bad.any("record") & ~case.learnt
    if not most(shows):
        return None
    measured, peak = float(ratio.max("record").median("lane")), float(case.history["train_loss"].max())
    return case.found(
        "learning_rate_high",
        shows,
        case.history["layer"].values,
        bad,
        {"update_ratio": measured, "bound": FAST, "loss_at_most": peak, "loss_of_chance": case.chance},
        "learning rate",
        f"a step changes half of the layers by {measured:.2g} of their weights or more (healthy: at most {FAST:g}), "
        f"and the loss reaches {peak:.3g} where chance has {case.chance:.3g}",
        f"try a learning rate of {_round(case.hypers.learning_rate * FAST / 10 / measured)}",
    )


def dead(case: Case) -> Finding | None:
    """Units whose slope is zero on every example."""
    if _saturates(case.config.activation):
        return None  # these call it saturated
    share = case.of_hidden("activation_dead_fraction")
    healthy = case.reference.draws["dead_fraction"].sel(layer=case.hidden).mean("draw")
    excess = (share - healthy) / (1 - healthy).clip(min=1e-6)
    whole = (share == 1).any("layer")
    shows = _stays(case, whole | (excess.max("layer") > DEAD))
    gone = whole.isel(record=case.last) & shows
    if not most(shows) and not bool(gone.any()):
        return None
    shows = shows if most(shows) else gone
    worst = share.where(shows).max("record").median("lane")
    layers = [str(name) for name in case.hidden if float(worst.sel(layer=name)) > DEAD + float(healthy.sel(layer=name))]
    at_start = bool((share.isel(record=0).max("layer").where(shows).max()) >= float(worst.max()) - DEAD)
    cause = "initial weights and biases" if at_start else "learning rate"
    ends = f", the whole of a layer in {int(gone.sum())} lanes, which stops every gradient below" if gone.any() else ""
    advice = "leaky_relu, elu or gelu; biases that start at 0 (--sigma-b 0) and weights without a mean"
    if not at_start:
        advice = f"try a learning rate of {_round(case.hypers.learning_rate / 3)}, leaky_relu, or wider layers"
    return case.found(
        "dead",
        shows,
        layers or case.hidden,
        (share.max("layer") > DEAD),
        {
            "dead_share": dict(zip(case.hidden, worst.values.tolist(), strict=True)),
            "critical_draws": dict(zip(case.hidden, healthy.values.tolist(), strict=True)),
            "bound_of_excess": DEAD,
        },
        cause,
        f"up to {100 * float(worst.max()):.0f} % of a layer's units have a slope of 0 on every example "
        f"(critical draws: {100 * float(healthy.max()):.0f} %){ends}",
        advice,
        None if most(shows) else "warning",
    )


def saturated(case: Case) -> Finding | None:
    """Units on the flat ends of a sigmoid."""
    if not _saturates(case.config.activation):
        return None
    share = case.of_hidden("activation_saturated_fraction")
    bad = share.max("layer") > SATURATED
    shows = _stays(case, bad)
    if not most(shows):
        return None
    worst = share.where(shows).max("record").median("lane")
    layers = [name for name in case.hidden if float(worst.sel(layer=name)) > SATURATED]
    healthy = case.reference.draws["saturated_fraction"].sel(layer=case.hidden).mean("draw")
    at_start = most(bad.isel(record=0))
    weights = max(case.sigma_w2 or (1.0, 1.0))
    if not at_start:
        cause, advice = "learning rate", f"try a learning rate of {_round(case.hypers.learning_rate / 10)}"
    elif case.hypers.sigma_b**2 > max(weights, 1.0):
        cause, advice = "initial biases", f"smaller biases: --sigma-b 0, here {case.hypers.sigma_b:g}"
    elif layers == case.hidden[:1] or weights <= 2 * _need(case) ** 2:
        cause, advice = "data scale", "scale the inputs: --scaling standardised (or 1/255 for bytes)"
    else:
        cause, advice = "weight gain", f"smaller initial weights: {_cure(case)}"
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
    """The gradient decays on its way back, more than a critical network's: at the start, or at an end without success."""
    centre, half = case.healthy
    bound = centre - max(FALLS, half)
    bad = case.change < bound
    shows = bad.isel(record=0) | (bad.isel(record=case.last) & ~case.learnt)
    if not most(shows):
        return None
    onset = int((bad & shows).sum("lane").argmax("record"))
    measured = float(case.change.isel(record=onset).median("lane"))
    parts = _parts(case, measured, onset)
    causes = [name for name, part in parts.items() if part <= SHARE * measured] or [min(parts, key=parts.__getitem__)]
    logs = case.history[case.profile].isel(record=onset).median("lane").astype(np.float64)
    below = logs.sel(layer=case.level) - logs.sel(layer=case.level[-1])
    layers = [name for name in case.level if float(below.sel(layer=name)) < -1] or case.level[:1]
    named = "; ".join(f"{name} {part:+.1f}" for name, part in parts.items())
    return case.found(
        "vanishing",
        shows,
        layers,
        bad,
        _profile_numbers(case, measured, bound) | {"decades_by_cause": parts},
        ", ".join(causes),
        f"the gradient falls by {-measured:.1f} decades {_way(case, measured, onset)} (by cause: {named}); "
        f"{_band(case)}",
        _cure(case),
    )


def clipping(case: Case) -> Finding | None:
    """Clipping turns the gradient, and does not only shorten it."""
    if case.config.clip == "none":
        return None
    g, c, cosine = (
        case.history[name].astype(np.float64) for name in ("gradient_norm", "clipped_norm", "clipped_cosine")
    )
    scale = 1 / case.config.batch_size if case.config.reduction == "sum" else 1.0
    product = (g**2).sum("layer") ** 0.5 * (c**2).sum("layer") ** 0.5
    whole = (g * c * cosine.fillna(0)).sum("layer") / product.where(product > 0)
    bad = whole < TURNED
    shows = (whole.median("record") < TURNED) | (bad.isel(record=0) & bad.isel(record=case.last))
    if not most(shows):
        return None
    measured = float(whole.median("record").where(shows).median("lane"))
    by_layer = cosine.where(shows).median(("lane", "record"))
    layers = [str(name) for name in by_layer["layer"].values if float(by_layer.sel(layer=name)) < TURNED]
    fraction = float(case.history["clipped_fraction"].where(shows).median(("lane", "record")).max())
    largest = scale * float(((g.isel(record=0) ** 2).sum("layer") ** 0.5).median())
    return case.found(
        "clipping",
        shows,
        layers or case.history["layer"].values,
        bad,
        {
            "cosine": measured,
            "bound": TURNED,
            "cosine_by_layer": dict(zip(map(str, by_layer["layer"].values), by_layer.values.tolist(), strict=True)),
            "clipped_fraction": fraction,
            "clip_threshold": case.hypers.clip_threshold,
            "gradient_norm": largest,
        },
        "clipping",
        f"--clip {case.config.clip} at {case.hypers.clip_threshold:g} changes up to {100 * fraction:.0f} % of a "
        f"layer's elements: the angle to the gradient has a cosine of {measured:.2g} (shortening alone: 1)",
        f"--clip global_norm, which keeps the direction, at about the gradient's norm, {largest:.2g}",
    )


def learning_rate_low(case: Case) -> Finding | None:
    """All steps together are short of the weights, and nothing is learnt."""
    ratio = case.history["update_ratio"].astype(np.float64)
    n = int(case.history["evaluated_at"].values[-1])
    path = (ratio.where(np.isfinite(ratio)).mean("record") * n).max("layer")
    shows = (path < SHORT) & ~case.learnt & (case.history["first_bad_step"] < 0)
    if not most(shows):
        return None
    measured = float(path.median("lane"))
    better = case.hypers.learning_rate * 10 * SHORT / measured if measured > 0 else np.inf
    return case.found(
        "learning_rate_low",
        shows,
        case.history["layer"].values,
        xr.ones_like(ratio.isel(layer=0), dtype=bool),
        {"path": measured, "bound": SHORT, "steps": n, "update_ratio": measured / n},
        "learning rate",
        f"all {n} steps together move no layer by more than {measured:.2g} of its weights (healthy: {SHORT:g} or more)",
        f"a learning rate of {_round(better)}" if np.isfinite(better) else "a learning rate above 0",
    )


def underflow(case: Case) -> Finding | None:
    """Gradients that low precision has no numbers for, while there is still something to learn."""
    history = case.history
    learning = (history["loss"] > case.chance / 2) | (history["step"] == history["step"][0])

    def lost(precision: str) -> xr.DataArray:
        return history[f"gradient_{precision}_underflow"].astype(np.float64).where(learning)

    half, brain = lost("float16"), lost("bfloat16")
    bad = half.max("layer") > LOST
    shows = bad.isel(record=0)
    if not most(shows):
        return None
    worst = half.isel(record=0).where(shows).median("lane")
    too_small = bool(brain.isel(record=0).max("layer").where(shows).median() > LOST)
    layers = [str(name) for name in worst["layer"].values if float(worst.sel(layer=name)) > LOST]
    share = float(worst.max())
    return case.found(
        "underflow",
        shows,
        layers,
        bad,
        {
            "lost_in_float16": dict(zip(map(str, worst["layer"].values), worst.values.tolist(), strict=True)),
            "lost_in_bfloat16": float(brain.isel(record=0).max("layer").median()),
            "bound": LOST,
        },
        "precision",
        f"float16 would make zeros of {100 * share:.0f} % of the nonzero gradient of a layer"
        + (", and so would bfloat16" if too_small else ", bfloat16 of none that matter"),
        "larger weights in the layers above" if too_small else "bfloat16, or a loss scaled up by 2¹⁰ or more",
        "serious" if too_small else "warning",
    )


@dataclass(frozen=True)
class Rule:
    """A row: what the rule looks at, and the rule."""

    check: Callable[[Case], Finding | None]
    needs: tuple[str, ...]


PROFILE = ("delta_log10_rms|gradient_log10_rms",)  # either
RULES: dict[str, Rule] = {  # the root of several troubles before what comes of it
    "nan": Rule(nan, ("first_bad_step",)),
    "constant": Rule(constant, ("weight_histogram",)),
    "exploding": Rule(exploding, PROFILE),
    "batch_norm": Rule(batch_norm, PROFILE),
    "learning_rate_high": Rule(learning_rate_high, ("update_ratio",)),
    "dead": Rule(dead, ("activation_dead_fraction",)),
    "saturated": Rule(saturated, ("activation_saturated_fraction",)),
    "vanishing": Rule(vanishing, PROFILE),
    "clipping": Rule(clipping, ("gradient_norm", "clipped_norm", "clipped_cosine", "clipped_fraction")),
    "learning_rate_low": Rule(learning_rate_low, ("update_ratio",)),
    "underflow": Rule(underflow, ("gradient_float16_underflow", "gradient_bfloat16_underflow")),
}


# What several rules share


def _update_ratio(case: Case) -> xr.DataArray:
    """The median layer's ‖ΔW‖/‖W‖, [lane, record]."""
    ratio = case.history["update_ratio"].astype(np.float64)
    return ratio.where(np.isfinite(ratio)).median("layer")


def _saturates(named: Any) -> bool:
    """Whether the activation is flat on both ends."""
    phi = activation(named)
    slopes = jax.vmap(jax.grad(lambda x: phi(x)))(jnp.array([-20.0, 20.0], jnp.float32))
    return bool(jnp.all(jnp.abs(slopes) <= SATURATED_SLOPE * steepest_slope(named)))


def _need(case: Case) -> float:
    """The weight gain that keeps δ's length: the critical σ_w; 1 where the critical network itself is saturated."""
    reference = case.reference
    share = float(reference.draws["saturated_fraction"].sel(layer=case.hidden).mean())
    return 1.0 if _saturates(case.config.activation) and share > SATURATED / 2 else float(np.sqrt(reference.sigma_w2))


def _parts(case: Case, total: float, record: int) -> dict[str, float]:
    """The decades that weights, slopes and the rest have in it, against what keeps δ's length; weights first.

    Weights are what is chosen first, so they are named first.
    """
    between, need, start = case.level[:-1], _need(case), case.history.isel(record=record).median("lane")
    rest = "normalisation" if case.config.norm != "none" else "alignment of weights and gradient"
    if case.config.branch != "plain":
        rest = "skip connections"
    if "decay_weight_gain" in start:
        gain, slope = (
            start[f"decay_{name}"].sel(layer=between).values.astype(np.float64) for name in ("weight_gain", "slope")
        )
        weights, slopes = _log_sum(gain / need), _log_sum(slope * need)
        return {"weight gain": weights, "slope of the activation": slopes, rest: total - weights - slopes}
    if "weight_norm" in start:
        norm = start["weight_norm"].sel(layer=case.level[1:])
        weights = _log_sum(norm.values.astype(np.float64) / np.sqrt(norm["fan_out"].values) / need)
        return {"weight gain": weights, "slope of the activation": total - weights}
    return {"weight gain or slope of the activation": total}


def _log_sum(factors: np.ndarray) -> float:
    return float(np.log10(np.maximum(factors, 10**NOTHING)).sum())


def _near_multiples(counts: np.ndarray, width: int) -> bool:
    """Whether counts are multiples of the width, but for a few that rounding moved over a bin's edge."""
    counts = counts[counts > 0].astype(np.int64)
    off = np.minimum(counts % width, -counts % width)
    return bool(off.sum() <= 0.1 * counts.size * width / 4)  # a tenth of what chance leaves


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


def _cure(case: Case) -> str:
    """Weights that keep the gradient's length, or another activation where none do."""
    name, critical, here = text_of(case.config.activation), case.reference.sigma_w2, ""
    if case.sigma_w2:
        low, high = (f"{value:.2g}" for value in case.sigma_w2)
        here = f"σ_w² here is {low if low == high else f'{low}–{high}'}; "
    said = f"{here}critical for {name} at this depth is {critical:.3g}"
    if _need(case) != float(np.sqrt(critical)):
        return f"{said}, which saturates it: take tanh or ReLU with He"
    if abs(critical - 2) < 0.05:
        return f"{said}: take he_normal"
    return f"{said}: take the initializer mean_field with --sigma-w {np.sqrt(critical):.3g}"


def _round(value: float) -> str:
    return f"{value:.1g}"
