"""`vgjax diagnose`: find what is wrong with the network of a run."""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vgjax.command.options import FAILED, DataDir

if TYPE_CHECKING:
    from vgjax.diagnosis.rules import Diagnosis


@dataclass(frozen=True)
class Diagnose:
    """Say what is wrong with a run's network, with evidence, cause and advice; write diagnosis.json into the run."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of the run, finished or not."""
    json: FlagCreatePairsOff[bool] = False
    """Print the findings as JSON."""
    fail_on: Literal["serious", "warning", "never"] = "never"
    """End with status 1 if there is a finding of this severity or a worse one."""
    data_dir: DataDir = None

    def run(self) -> None:
        """Diagnose, write diagnosis.json and print the findings."""
        from vgjax.diagnosis.rules import SEVERITIES, diagnose, write_diagnosis
        from vgjax.training.history import load

        diagnosis = diagnose(load(self.folder), data_dir=self.data_dir)
        path = write_diagnosis(diagnosis, self.folder)
        if self.json:
            print(diagnosis.as_json(), end="")
        else:
            print_diagnosis(diagnosis, path)
        severe = {"serious": SEVERITIES[:1], "warning": SEVERITIES, "never": ()}[self.fail_on]
        if any(finding.severity in severe for finding in diagnosis.findings):
            raise SystemExit(FAILED)


def print_diagnosis(diagnosis: Diagnosis, path: Path) -> None:
    """Print each finding as a paragraph, and where they are written; without a terminal, lines are not wrapped."""
    several = len({tuple(finding.hypers.values()) for finding in diagnosis.findings}) > 1
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for finding in diagnosis.findings:
        where = ", ".join(finding.layers) if len(finding.layers) < 4 else f"{finding.layers[0]} … {finding.layers[-1]}"
        steps = " … ".join(map(str, dict.fromkeys(finding.steps[:1] + finding.steps[-1:])))
        when = f" — step{'s' if len(finding.steps) > 1 else ''} {steps}" if steps else ""
        print(f"{finding.severity}: {finding.rule.replace('_', ' ')} — {where}{when}")
        hypers = ", ".join(f"{name} {value:g}" for name, value in finding.hypers.items()) if several else ""
        parts = {"with": hypers, "seen": finding.evidence, "cause": finding.cause, "try": finding.advice}
        for name, text in parts.items():
            if text:
                print(textwrap.fill(text, width, initial_indent=f"  {name:<7}", subsequent_indent=" " * 9))
        print()
    if not diagnosis.findings:
        print("nothing found")
    for rule, reason in diagnosis.unchecked.items():
        print(f"unchecked   {rule.replace('_', ' ')}: {reason}")
    print(f"diagnosis   {path}")
