"""Rules about weights and steps: copied units, learning rate, clipping, low precision, NaN and infinity.

The comment beside each bound gives the values of the healthy runs and of the faulty runs in the building half of
`experiments/calibration.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from vgjax.diagnosis.advice import initializer_advice, rounded
from vgjax.diagnosis.case import Case, Explanation, Finding, most, update_ratio
from vgjax.network.layer_names import layer_number

FAST = 0.12  # ‖ΔW‖/‖W‖ of one step, in half of the layers; healthy: up to 0.04; faulty: from 0.37
SHORT = 0.01  # Σ‖ΔW‖/‖W‖ over the run, in every layer; healthy: from 0.14; faulty: up to 0.0003
TURNED = 0.95  # cosine between the gradient before and after clipping; healthy: 1
LARGEST_NORM = 1.8e19  # its square is float32's largest number
LOST = 0.3  # share of a layer's nonzero gradient elements; healthy: up to 0.002; faulty: 1


def nan(case: Case) -> Finding | None:
    """A lane became NaN or infinite."""
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
        ratio = float(update_ratio(case).isel(lane=first).max())
        numbers |= {"update_ratio": ratio, "update_ratio_bound": FAST}
        cause = "learning rate" if ratio > FAST or at > 0 else "weight gain"
    elif at == 0:
        cause = "weight gain"
    what = "update of the weights" if where == "update" else f"{where} pass"
    evidence = f"NaN or infinity from step {at} on, first in the {what} of {layer}"
    if ratio == ratio:
        evidence += f"; ‖ΔW‖/‖W‖ had reached {ratio:.2g} before"
    advice = f"try a learning rate of {case.hypers.learning_rate / 10:.2g} or less, or --clip global_norm"
    if cause.startswith("weight gain"):
        advice = f"smaller initial weights: {initializer_advice(case)}"
    return case.found("nan", shows, [layer], None, numbers, Explanation(cause, evidence, advice), "serious")


def constant(case: Case) -> Finding | None:
    """All units of a layer are copies of each other, and training keeps them equal."""
    history, copies = case.history, []
    if case.hypers.sigma_b > 0:
        return None
    counts = history["weight_histogram"].isel(record=0).values.astype(np.int64)
    gradients = history["gradient_histogram"].isel(record=0).values if "gradient_histogram" in history else None
    names, fans = list(map(str, history["layer"].values)), history["fan_out"].values
    for i, name in enumerate(names[:-1]):
        width = int(fans[i])
        # in a histogram of n equal columns (or rows) every count is a multiple of n
        is_below = layer_number(names[i + 1]) == layer_number(name) + 1
        if width < 2 or not is_below or (counts[:, i : i + 2] % width).any():
            continue
        if gradients is None or _near_multiples(gradients[:, i], width):
            copies.append(name)
    if not copies:
        return None
    zero = bool((history["weight_norm"].isel(record=0).sel(layer=copies) == 0).all()) if "weight_norm" in history else 0
    shows = xr.ones_like(history["first_bad_step"], dtype=bool)
    return case.found(
        "constant",
        shows,
        copies,
        history["step"] == history["step"][0],
        {"units_that_differ": 1, "units": [int(fans[names.index(name)]) for name in copies]},
        Explanation(
            f"initializer: weights that are {'zero' if zero else 'equal'}",
            f"all units of {copies[0]} start as copies of each other and get the same gradient at every step",
            f"draw the weights at random: {initializer_advice(case)}",
        ),
        "serious",
    )


def learning_rate_high(case: Case) -> Finding | None:
    """Steps nearly as large as the weights, in a run that has not learnt."""
    ratio = update_ratio(case)
    bad = ratio > FAST
    shows = bad.any("record") & ~case.learnt
    if not most(shows):
        return None
    measured, peak = float(ratio.max("record").median("lane")), float(case.history["train_loss"].max(skipna=False))
    reached = f"reaches {peak:.3g}" if np.isfinite(peak) else "becomes NaN or infinite"
    return case.found(
        "learning_rate_high",
        shows,
        case.history["layer"].values,
        bad,
        {"update_ratio": measured, "bound": FAST, "loss_at_most": peak, "loss_of_chance": case.chance},
        Explanation(
            "learning rate",
            f"one step changes the weights of half of the layers by {measured:.2g} of their norm or more (healthy: at "
            f"most {FAST:g}), and the loss {reached} (guessing: {case.chance:.3g})",
            f"try a learning rate of {rounded(case.hypers.learning_rate * FAST / 10 / measured)}",
        ),
    )


def clipping(case: Case) -> Finding | None:
    """Clipping changes the gradient's direction, or makes it 0."""
    if case.config.clip == "none":
        return None
    if found := _zeroed(case):
        return found
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
        Explanation(
            "clipping",
            f"--clip {case.config.clip} at {case.hypers.clip_threshold:g} changes up to {100 * fraction:.0f} % of a "
            f"layer's elements: its cosine with the gradient is {measured:.2g} (1 if the direction is kept)",
            f"--clip global_norm, which keeps the direction, with a threshold near the gradient's norm, {largest:.2g}",
        ),
    )


def _zeroed(case: Case) -> Finding | None:
    """Clipping makes the gradient 0: its norm overflows float32, or the result is too small for float32."""
    if "clipped_to_zero" not in case.history:
        return None
    share = case.history["clipped_to_zero"].max("evaluation")
    shows = share > 0
    if not most(shows):
        return None
    g, c = (case.history[name].astype(np.float64) for name in ("gradient_norm", "clipped_norm"))
    zeroed = (g > 0) & (c == 0)
    layers = [str(name) for name in g["layer"].values if bool(zeroed.sel(layer=name).where(shows).any())]
    measured, largest = float(share.where(shows).median()), float((g**2).sum("layer").where(shows).max() ** 0.5)
    why, advice = "the clipped gradient is below float32's smallest number", "a larger --clip-threshold"
    if largest > LARGEST_NORM:
        why = "the square of a norm above 1.8e19 overflows float32"
        advice = f"smaller initial weights: {initializer_advice(case)}; or --clip value, which computes no norm"
    elif case.hypers.clip_threshold == 0:
        why = "the threshold is 0"
    return case.found(
        "clipping",
        shows,
        layers or g["layer"].values,
        zeroed.any("layer"),
        {"clipped_to_zero": measured, "gradient_norm": largest, "largest_norm": LARGEST_NORM},
        Explanation(
            "clipping",
            f"--clip {case.config.clip} makes the gradient 0 in up to {100 * measured:.3g} % of an epoch's steps, "
            f"which then change no weight: the norm reached {largest:.2g}, and {why}",
            advice,
        ),
    )


def learning_rate_low(case: Case) -> Finding | None:
    """All steps together are small beside the weights, in a run that has not learnt.

    Steps of exactly 0 count only if the learning rate is 0; otherwise they have another cause.
    """
    ratio = case.history["update_ratio"].astype(np.float64)
    n = int(case.history["evaluated_at"].values[-1])
    path = (ratio.where(np.isfinite(ratio)).mean("record") * n).max("layer")
    shows = (path < SHORT) & ~case.learnt & (case.history["first_bad_step"] < 0)
    shows &= (path > 0) | (case.hypers.learning_rate == 0)
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
        Explanation(
            "learning rate",
            f"all {n} steps together change no layer's weights by more than {measured:.2g} of their norm "
            f"(healthy: {SHORT:g} or more)",
            f"a learning rate of {rounded(better)}, or more steps"
            if np.isfinite(better)
            else "a learning rate above 0",
        ),
    )


def underflow(case: Case) -> Finding | None:
    """Gradients too small for a low precision, while the loss is still high."""
    history = case.history
    learning = (history["loss"] > case.chance / 2) | (history["step"] == history["step"][0])

    def lost(precision: str) -> xr.DataArray:
        return history[f"gradient_{precision}_underflow"].astype(np.float64).where(learning)

    in_float16, in_bfloat16 = lost("float16"), lost("bfloat16")
    bad = in_float16.max("layer") > LOST
    shows = bad.isel(record=0)
    if not most(shows):
        return None
    worst = in_float16.isel(record=0).where(shows).median("lane")
    too_small = bool(in_bfloat16.isel(record=0).max("layer").where(shows).median() > LOST)
    layers = [str(name) for name in worst["layer"].values if float(worst.sel(layer=name)) > LOST]
    share = float(worst.max())
    return case.found(
        "underflow",
        shows,
        layers,
        bad,
        {
            "lost_in_float16": dict(zip(map(str, worst["layer"].values), worst.values.tolist(), strict=True)),
            "lost_in_bfloat16": float(in_bfloat16.isel(record=0).max("layer").median()),
            "bound": LOST,
        },
        Explanation(
            "precision",
            f"in float16, {100 * share:.0f} % of a layer's nonzero gradient elements would be 0 at step "
            f"{history['step'].values[0]}" + (", and in bfloat16 too" if too_small else "; bfloat16 would keep them"),
            "larger weights in the layers above" if too_small else "bfloat16, or a loss scaled up by 2¹⁰ or more",
        ),
        "serious" if too_small else "warning",
    )


def _near_multiples(counts: np.ndarray, width: int) -> bool:
    """Whether counts are multiples of the width, except for a few elements that rounding put into the next bin."""
    counts = counts[counts > 0].astype(np.int64)
    off = np.minimum(counts % width, -counts % width)
    return bool(off.sum() <= 0.1 * counts.size * width / 4)  # a tenth of the expected remainder of random counts
