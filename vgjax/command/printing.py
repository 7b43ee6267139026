"""What the command prints on stdout: tables, and what came of its work."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console
from rich.table import Table

from vgjax.analysis import departure
from vgjax.names import text_of
from vgjax.network.model import ModuleRow
from vgjax.sweeps.tables import best

if TYPE_CHECKING:
    from vgjax.sweeps.plan import Slice, SweepPlan
    from vgjax.sweeps.reruns import RerunResult

WIDTH_OF_A_PIPE = 200
UNDEFINED = "undefined"

# What `vgjax list` shows: topic → (module, table).
TOPICS = {
    "initializers": ("initializers", "INITIALIZERS"),
    "activations": ("activations", "ACTIVATIONS"),
    "optimizers": ("training.optim", "OPTIMIZERS"),
    "schedules": ("training.optim", "SCHEDULES"),
    "clips": ("training.optim", "CLIPS"),
    "cadences": ("statistics.cadence", "CADENCES"),
    "families": ("statistics.families", "FAMILIES"),
    "datasets": ("data.catalogue", "DATASETS"),
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command, as with everything else that is printed; rich would exit with status 1."""
        raise BrokenPipeError


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[str] = ()) -> None:
    """A table on stdout, as wide as the terminal; piped, its lines are not broken.

    Args:
      title: above the table.
      columns: their headings.
      rows: cells; None is left empty.
      numbers: the columns that are aligned to the right.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell).replace("[", r"\[") for cell in row))
    print(title)
    _Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH_OF_A_PIPE).print(table)


def print_network(rows: Sequence[ModuleRow], features: int) -> None:
    """The network module by module, and the total.

    Args:
      rows: as `vgjax.network.model.describe` gives them.
      features: width of the network's input.
    """
    cells: list[tuple] = []
    width = features
    for row in rows:
        outputs = row.outputs if row.kind == "dense" else width
        sigma_w2 = None if row.sigma_w2 is None else f"{row.sigma_w2:.4g}"
        cells.append((row.name, row.kind, width, outputs, row.parameters, sigma_w2))
        width = outputs
    cells.append(("total", None, features, width, sum(row.parameters for row in rows), None))
    columns = ("module", "kind", "in", "out", "parameters", "σ_w²")
    print_table("σ_w² = fan_in · Var(W) of the initializer, before --sigma-w", columns, cells, columns[2:])


def print_names(topics: Sequence[str]) -> None:
    """What can be named: a table a topic."""
    for i, topic in enumerate(topics):
        module, table = TOPICS[topic]
        entries = getattr(importlib.import_module(f"vgjax.{module}"), table)
        rows = [(name, e.summary, e.source) for name, e in entries.items()]
        print_table(f"\n{topic}" if i else topic, ("name", "what", "source"), rows)


def print_data(rows: Sequence[dict[str, Any]]) -> None:
    """The data sets, as `vgjax.data.ready` gives them."""
    columns = ("name", "ready", "train", "test", "shape", "classes", "where", "source")
    cells = []
    for row in rows:
        shape = None if row["shape"] is None else "×".join(map(str, row["shape"]))
        plain = row | {"ready": "yes" if row["ready"] else "no", "shape": shape}
        cells.append([plain[column] for column in columns])
    print_table("data sets", columns, cells, ("train", "test", "shape", "classes"))


def print_run(history: xr.Dataset, folder: Path, has_curves: bool) -> None:
    """What came of a run, and where it is."""
    if "gradient_log10_rms" in history:
        _print_layers(history)
    accuracy = history["validation_accuracy"].isel(evaluation=-1).values
    lanes, told = len(accuracy), accuracy[np.isfinite(accuracy)]
    of = f"{told.size} of {lanes}" if told.size < lanes else lanes
    mean = f"{told.mean():.4f}, mean over {of} lane{'s' if lanes > 1 else ''}" if told.size else UNDEFINED
    print(f"validation accuracy {mean}")
    for lane in range(lanes):
        for line in _troubles(history.isel(lane=lane)):
            print(line)
    print(f"history     {folder / 'history.nc'}\nstatistics  {folder / 'statistics.csv'}")
    if has_curves:
        print(f"curves      {sys.executable} -m tensorboard.main --logdir {folder / 'tensorboard'}")


def print_rerun(again: RerunResult) -> None:
    """Whether a result came out the same, and else what differs, and what it was made with."""
    lanes, n = again.history.sizes["lane"], len(again.history.variables)
    if not again.differences:
        print(f"the same to the last bit: {n} variables of {lanes} lane{'s' if lanes > 1 else ''}")
    else:
        rows = [
            (name, f"{one.share:.3g}", "" if np.isnan(one.largest) else f"{one.largest:.3g}")
            for name, one in again.differences.items()
        ]
        columns = ("variable", "share of numbers", "largest relative difference")
        print_table(f"{len(rows)} of {n} variables differ", columns, rows, columns[1:])
    if again.changed:
        changes = [(name, *there_and_here) for name, there_and_here in again.changed.items()]
        print_table("made with", ("what", "there", "here"), changes)


def print_empty_classes(empty: Sequence[int], classes: int) -> None:
    """Classes that no network can learn; nothing where there are none."""
    if empty:
        have = "have" if len(empty) > 1 else "has"
        print(f"classes     {len(empty)} of {classes} {have} no training example: {', '.join(map(str, empty))}")


def print_prediction(band: xr.Dataset, infinite: xr.Dataset) -> None:
    """What theory says of step 0, layer by layer, and the decay of δ.

    Args:
      band: by `analysis.band`.
      infinite: by `analysis.infinite_width`.
    """
    columns = ["layer", "fan_in", "fan_out", "σ_w²", "q", "χ₁", *(f"RMS of {what}" for what in ("h", "δ", "∂W"))]
    rows = []
    for name in infinite["layer"].values:
        one, banded = infinite.sel(layer=name), band.sel(layer=name)
        plain = [f"{float(one[column]):.4g}".replace("nan", "") for column in ("sigma_w2", "q", "chi1")]
        bands = [
            _with_band(*(float(banded[f"predicted{end}"].sel(signal=signal)) for end in ("", "_low", "_high")))
            for signal in ("activation_rms", "delta_rms", "gradient_rms")
        ]
        rows.append([str(name), int(one["fan_in"]), int(one["fan_out"]), *plain, *bands])
    print_table("Predicted at step 0: median of random networks and the middle 95 %", columns, rows, columns[1:])
    print(f"decay       {_predicted_decay(band)} decades a layer on the way back")


def print_signals(rows: Mapping[str, xr.Dataset]) -> None:
    """How measurement and prediction compare at step 0, and at the end.

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
            far = departure(row).isel(record=-1)
            numbers = {_short(name): float(far.sel(signal=name)) for name in far["signal"].values}
            parts = [f"{name} {f'{x:.2g}' if np.isfinite(x) else 'not finite'}" for name, x in numbers.items()]
            print(f"departure   decades from its median at step {int(far['step'])}: {', '.join(parts)}{where}")


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


def _troubles(lane: xr.Dataset) -> Iterator[str]:
    """Where a lane left the finite numbers, and whether its clipping stopped it."""
    step, layer, where = (lane[f"first_bad_{what}"].item() for what in ("step", "layer", "in"))
    who = f"seed {lane['seed'].item()}, learning rate {lane['learning_rate'].item():g}"
    if step >= 0:
        which = "update of the weights" if where == "update" else f"{where} pass"
        yield f"diverged    {who}: NaN or infinity from step {step} on, first in {layer} ({which})"
    if (share := zeroed_share(lane)) > 0:
        why = "a norm above 1.8e19 overflows float32" if lane["clip_threshold"] > 0 else "the threshold is 0"
        yield f"clipped     {who}: clipping makes zeros of gradients in {100 * share:.3g} % of the steps: {why}"


def zeroed_share(history: xr.Dataset) -> float:
    """Share of all steps in which clipping made zeros of a gradient; 0 where older histories do not say."""
    if "clipped_to_zero" not in history:
        return 0.0
    steps = xr.DataArray(np.diff(history["evaluated_at"].values, prepend=0), dims="evaluation")
    return float((history["clipped_to_zero"] * steps).sum("evaluation").mean() / steps.sum())


def layer_rms(history: xr.Dataset, record: int) -> np.ndarray:
    """[layers], NaN left out; by way of the logarithm, so that what float32 cannot hold is shown too."""
    return 10 ** history["gradient_log10_rms"].isel(record=record).astype(np.float64).mean("lane").values


def print_plan(plan: SweepPlan) -> None:
    """What a sweep is going to do: which programs, for how many runs, and what they need.

    Args:
      plan: by `vgjax.sweeps.plan.make_plan`.
    """
    programs: dict[Any, list[Slice]] = {}
    for one in plan.slices:
        programs.setdefault(one.program, []).append(one)
    rows = []
    for slices in programs.values():
        depths = sorted({len(one.config.hidden) for one in slices})
        names = (text_of(slices[0].config.activation), text_of(slices[0].config.initializer))
        runs = sum(len(one.points) for one in slices)
        hidden = slices[0].config.hidden
        width = hidden[0] if len(set(hidden)) == 1 else "-".join(map(str, hidden))
        rows.append([*names, width, ", ".join(map(str, depths)), runs, len(slices), slices[0].lanes])
    columns = ["activation", "initializer", "width", "hidden layers", "runs", "slices", "lanes at once"]
    print_table("Programs to compile", columns, rows, columns[4:])
    needed, there = (number / 1e9 for number in (plan.bytes_needed, plan.bytes_there))
    print(f"runs        {plan.points}, of which {plan.finished} are finished already")
    print(f"programs    {plan.programs} to compile, for {len(plan.slices)} slices of lanes")
    print(f"memory      about {needed:.2g} GB at once, of {there:.2g} GB that are free")
    print(f"time        about {_duration(plan.seconds)}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_sweep(history: xr.Dataset, folder: Path) -> None:
    """What came of a sweep, and where it is."""
    print_best(best(history), "validation_accuracy")
    lanes = history.sizes["lane"]
    if diverged := int((history["first_bad_step"] >= 0).sum()):
        print(f"diverged    {diverged} of {lanes} lanes: first_bad_step in {folder / 'lanes.csv'}")
    if zeroed := int((history["clipped_to_zero"] > 0).any("evaluation").sum()):
        print(f"clipped     {zeroed} of {lanes} lanes to zeros: clipped_to_zero in {folder / 'evaluations.csv'}")
    print(f"history     {folder / 'history.nc'}\nstatistics  {folder / 'statistics.csv'}")


def print_best(table: pd.DataFrame, value: str) -> None:
    """The best settings of a sweep, the best first.

    Args:
      table: by `vgjax.sweeps.tables.best`.
      value: what they are best in.
    """
    names = list(table.columns[: table.columns.get_loc("value")])
    rows = []
    for row in table.to_dict("records"):
        point = [f"{row[name]:.4g}" if isinstance(row[name], float) else row[name] for name in names]
        interval = None if np.isnan(row["low"]) else f"{row['low']:.4g} … {row['high']:.4g}"
        rows.append([*point, f"{row['value']:.4g}", interval, row["n"], row["diverged"] or None])
    columns = [*names, value.replace("_", " "), "95 % interval", "seeds", "lanes diverged"]
    numbers = [name for name in columns if name not in names or pd.api.types.is_numeric_dtype(table[name])]
    print_table("Best settings, mean over seeds", columns, rows, numbers)
