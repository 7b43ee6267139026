"""How often `vgjax diagnose` is right: runs with a fault built in, and healthy ones, each labelled by construction.

Claim: of the half of the runs that the rules were not built on, at least 95 % get their label as the first finding, and
at most 2 % of the healthy ones any finding at all.

Command: `python -m experiments.calibration` (about 5 minutes on 2 cores; `--half building` or `--half trial` alone).

A *bench* is one network on one data set; its lanes are the runs, each with a label that follows from how it was set up
(`experiments/benches.py`), whatever came of its training. Benches with an even number are for building: the bounds of
the rules were chosen on them. Those with an odd number were written before the rules were frozen, and first run after.

Right is: a healthy run has no finding, not even a warning; any other run has its label as the first finding.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff

from experiments.__main__ import _prepare_jax
from experiments.benches import BENCHES, LABELS

RESULTS = Path(__file__).parent / "results" / "calibration.json"
HALVES = ("building", "trial")
SHOWN = ("dataset", "scaling", "hidden", "activation", "initializer", "norm", "branch", "optimizer", "clip", "epochs")


def judge(i: int, smoke: bool = False) -> list[dict[str, Any]]:
    """Run a bench and diagnose every lane by itself: rows of label, what was found, and its numbers."""
    from vgjax.data.catalogue import load
    from vgjax.diagnosis.rules import diagnose
    from vgjax.training.loop import run

    bench, rows = BENCHES[i], []
    config = replace(bench.config, steps=2) if smoke else bench.config
    data = load(config.dataset)
    history = run(config, [hypers for _, hypers in bench.lanes], [i], dataset=data, devices=1).history
    losses = history["train_loss"].values[:, [0, -1]]
    for lane, (label, hypers) in enumerate(bench.lanes):
        diagnosis = diagnose(history.isel(lane=[lane]), data)
        first = json.loads(diagnosis.as_json())["findings"][:1]
        found = first[0]["rule"] if first else "healthy"
        rows.append(
            {
                "bench": i,
                "half": HALVES[i % 2],
                "network": {name: getattr(config, name) for name in SHOWN},
                "hypers": hypers._asdict(),
                "label": label,
                "found": found,
                "right": found == label,
                "finding": first[0] if first else None,
                "also_found": [one.rule for one in diagnosis.findings[1:]],
                "train_loss": [x if math.isfinite(x) else None for x in losses[lane].tolist()],
            }
        )
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one half: runs, share right, share of false alarms, and how often each label was found as what."""
    healthy = [row for row in rows if row["label"] == "healthy"]
    confusion: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = confusion.setdefault(row["label"], {})
        counts[row["found"]] = counts.get(row["found"], 0) + 1
    return {
        "runs": len(rows),
        "right": sum(row["right"] for row in rows) / max(len(rows), 1),
        "healthy": len(healthy),
        "false_alarms": sum(not row["right"] for row in healthy) / max(len(healthy), 1),
        "confusion": {label: confusion[label] for label in LABELS if label in confusion},
    }


@dataclass(frozen=True)
class Options:
    """Calibrate the diagnosis: runs with a fault built in and healthy ones, and what `vgjax diagnose` says of them."""

    half: Literal["both", "building", "trial"] = "both"
    """Which benches: those that the rules were built on, the others, or both."""
    smoke: FlagCreatePairsOff[bool] = False
    """Two benches of two steps: tests the code, calibrates nothing."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = RESULTS
    """Where the rows go [file]."""


def main() -> int:
    """Run, print the confusion matrix, write the rows."""
    options = tyro.cli(Options, prog="python -m experiments.calibration")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # a process a core
    _prepare_jax(smoke=True)  # its programs run for milliseconds
    import joblib

    from vgjax.environment import environment

    started, halves = time.monotonic(), [half for half in HALVES if options.half in ("both", half)]
    benches = [i for i in range(len(BENCHES)) if HALVES[i % 2] in halves]
    if options.smoke:
        benches = benches[:2]
    rows = []
    with ProcessPoolExecutor(joblib.cpu_count(), multiprocessing.get_context("spawn")) as workers:
        for part in workers.map(judge, benches, [options.smoke] * len(benches)):
            rows += part
            for row in (row for row in part if not row["right"]):
                print(f"bench {row['bench']}: {row['label']} → {row['found']}", file=sys.stderr)
    summaries = {half: summary([row for row in rows if row["half"] == half]) for half in halves}
    for half, one in summaries.items():
        _print(half, one)
    made = environment() | {"seconds": round(time.monotonic() - started, 1), "seeds": "the bench's number"}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(_line(row) for row in rows)
    options.out.write_text(
        f'{{"summary": {_line(summaries)},\n"environment": {_line(made)},\n"rows": [\n{lines}\n]}}\n'
    )
    print(f"rows: {options.out}")
    return 0


def _line(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _print(name: str, one: dict[str, Any]) -> None:
    found = sorted({rule for counts in one["confusion"].values() for rule in counts}, key=[*LABELS].index)
    right, alarms = 100 * one["right"], 100 * one["false_alarms"]
    print(f"{name}: {one['runs']} runs, {right:.1f} % right; {one['healthy']} healthy, false alarms {alarms:.1f} %")
    table = Table("label \\ found", *found)
    for label, counts in one["confusion"].items():
        table.add_row(label, *(str(counts.get(rule, "")) for rule in found))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    sys.exit(main())
