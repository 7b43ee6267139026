"""What the command prints on stdout: tables, and the measured and predicted signals of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from vgjax.analysis import departure

WIDTH_WITHOUT_TERMINAL = 200
UNDEFINED = "undefined"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error again: `vgjax.command.cli.main` ends with status 0, and rich would end with status 1."""
        raise BrokenPipeError


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[str] = ()) -> None:
    """Print a table, as wide as the terminal, or 200 characters where there is none.

    Args:
      title: above the table.
      columns: the headings.
      rows: the cells; None gives an empty one.
      numbers: the columns that are aligned to the right.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell).replace("[", r"\[") for cell in row))
    print(title)
    _Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL).print(table)


def print_run(history: xr.Dataset, folder: Path, has_curves: bool) -> None:
    """Print the results of a run, and where they are."""
    if "gradient_log10_rms" in history:
        _print_layers(history)
    accuracy = history["validation_accuracy"].isel(evaluation=-1).values
    lanes, finite = len(accuracy), accuracy[np.isfinite(accuracy)]
    count = f"{finite.size} of {lanes}" if finite.size < lanes else lanes
    mean = f"{finite.mean():.4f}, mean over {count} lane{'s' if lanes > 1 else ''}" if finite.size else UNDEFINED
    print(f"validation accuracy {mean}")
    for lane in range(lanes):
        for line in _warnings(history.isel(lane=lane)):
            print(line)
    print(f"history     {folder / 'history.nc'}\nstatistics  {folder / 'statistics.csv'}")
    if has_curves:
        print(f"curves      {sys.executable} -m tensorboard.main --logdir {folder / 'tensorboard'}")


def print_empty_classes(empty: Sequence[int], classes: int) -> None:
    """Print which classes have no training example, so that no network can learn them."""
    if empty:
        have = "have" if len(empty) > 1 else "has"
        print(f"classes     {len(empty)} of {classes} {have} no training example: {', '.join(map(str, empty))}")


def print_prediction(band: xr.Dataset, infinite: xr.Dataset) -> None:
    """Print what theory predicts for step 0, layer by layer, and the decay of δ.

    Args:
      band: by `analysis.band`.
      infinite: by `analysis.infinite_width`.
    """
    columns = ["layer", "fan_in", "fan_out", "σ_w²", "q", "χ₁", *(f"RMS of {what}" for what in ("h", "δ", "∂W"))]
    rows = []
    for name in infinite["layer"].values:
        layer, layer_band = infinite.sel(layer=name), band.sel(layer=name)
        plain = [f"{float(layer[column]):.4g}".replace("nan", "") for column in ("sigma_w2", "q", "chi1")]
        bands = [
            _with_band(*(float(layer_band[f"predicted{end}"].sel(signal=signal)) for end in ("", "_low", "_high")))
            for signal in ("activation_rms", "delta_rms", "gradient_rms")
        ]
        rows.append([str(name), int(layer["fan_in"]), int(layer["fan_out"]), *plain, *bands])
    print_table("Predicted at step 0: median of random networks and the middle 95 %", columns, rows, columns[1:])
    print(f"decay       {_predicted_decay(band)} decades a layer on the way back")


def print_signals(rows: Mapping[str, xr.Dataset]) -> None:
    """Print how measurement and prediction compare at step 0, and at the last recorded step.

    Args:
      rows: by `analysis.signals`.
    """
    for title, row in rows.items():
        start = row.isel(record=0)
        inside = (start["predicted_low"] <= start["measured"]) & (start["measured"] <= start["predicted_high"])
        where = f" ({title})" if title else ""
        if "decay" in row:
            decay, low, high = (float(start[f"decay{end}"]) for end in ("", "_low", "_high"))
            measured = UNDEFINED if np.isnan(decay) else f"{decay:.3g}"
            interval = "" if np.isnan(low) else f" ({low:.3g} … {high:.3g})"
            print(
                f"decay       {measured}{interval} decades a layer on the way back at step "
                f"{int(start['step'])}; predicted {_predicted_decay(row)}{where}"
            )
        counts = ", ".join(
            f"{int(inside.sel(signal=name).sum())} of {inside.sizes['layer']} layers {_short(name)}"
            for name in inside["signal"].values
        )
        print(f"theory      inside its 95 % band at step {int(start['step'])}: {counts}{where}")
        if row.sizes["record"] > 1:
            departed = departure(row).isel(record=-1)
            numbers = {_short(name): float(departed.sel(signal=name)) for name in departed["signal"].values}
            parts = [f"{name} {f'{x:.2g}' if np.isfinite(x) else 'not finite'}" for name, x in numbers.items()]
            print(f"departure   decades from its median at step {int(departed['step'])}: {', '.join(parts)}{where}")


def _short(signal: str) -> str:
    return signal.removesuffix("_rms")


def _predicted_decay(band: xr.Dataset) -> str:
    centre, low, high = (float(band[f"predicted_decay{end}"]) for end in ("", "_low", "_high"))
    return UNDEFINED if np.isnan(centre) else f"{centre:.3g} ({low:.3g} … {high:.3g})"


def _with_band(centre: float, low: float, high: float) -> str:
    return UNDEFINED if np.isnan(centre) else f"{centre:.3g} ({low:.2g} … {high:.2g})"


def _print_layers(history: xr.Dataset) -> None:
    first, last = (layer_rms(history, record) for record in (0, -1))
    steps = history["step"].values
    columns = ("layer", "fan_in", "fan_out", f"step {steps[0]}", f"step {steps[-1]}")
    names = [str(name) for name in history["layer"].values]
    rows = [
        (name, fan_in, fan_out, f"{a:.3g}", f"{b:.3g}")
        for name, fan_in, fan_out, a, b in zip(
            names, history["fan_in"].values, history["fan_out"].values, first, last, strict=True
        )
    ]
    print_table("RMS of the weight gradient, geometric mean over lanes", columns, rows, columns[1:])


def _warnings(lane: xr.Dataset) -> Iterator[str]:
    """Where a lane diverged, and whether clipping made zeros of its gradients: a line each."""
    step, layer, where = (lane[f"first_bad_{what}"].item() for what in ("step", "layer", "in"))
    lane_name = f"seed {lane['seed'].item()}, learning rate {lane['learning_rate'].item():g}"
    if step >= 0:
        which = "update of the weights" if where == "update" else f"{where} pass"
        yield f"diverged    {lane_name}: NaN or infinity from step {step} on, first in {layer} ({which})"
    if (share := zeroed_share(lane)) > 0:
        why = "a norm above 1.8e19 overflows float32" if lane["clip_threshold"] > 0 else "the threshold is 0"
        yield f"clipped     {lane_name}: clipping makes zeros of gradients in {100 * share:.3g} % of the steps: {why}"


def zeroed_share(history: xr.Dataset) -> float:
    """Share of the steps in which clipping made zeros of a gradient; 0 for older histories, which do not record it."""
    if "clipped_to_zero" not in history:
        return 0.0
    steps = xr.DataArray(np.diff(history["evaluated_at"].values, prepend=0), dims="evaluation")
    return float((history["clipped_to_zero"] * steps).sum("evaluation").mean() / steps.sum())


def layer_rms(history: xr.Dataset, record: int) -> np.ndarray:
    """RMS of each layer's weight gradient, geometric mean over lanes without NaN; a record is an index.

    From the logarithm, because the RMS itself may be too small or too large for float32.

    Returns:
      Float64 [layers].
    """
    return 10 ** history["gradient_log10_rms"].isel(record=record).astype(np.float64).mean("lane").values
