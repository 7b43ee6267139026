"""`diagnose` applies the table of rules to every setting of a history."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from vgjax.config import Config, Hypers
from vgjax.data.dataset import Dataset
from vgjax.diagnosis import signal_rules, step_rules
from vgjax.diagnosis.case import Case, Finding
from vgjax.diagnosis.reference import critical_draws, data_without_network
from vgjax.files import whole
from vgjax.network.layer_names import layer_number
from vgjax.report import as_json
from vgjax.settings import run_of

SEVERITIES = ("serious", "warning")


@dataclass(frozen=True)
class Rule:
    """A row of the table: the function that looks for a fault, and the variables of the history that it needs."""

    check: Callable[[Case], Finding | None]
    needs: tuple[str, ...]


PROFILE = ("delta_log10_rms|gradient_log10_rms",)  # one of the two
RULES: dict[str, Rule] = {  # a fault stands before the faults that it causes
    "nan": Rule(step_rules.nan, ("first_bad_step",)),
    "constant": Rule(step_rules.constant, ("weight_histogram",)),
    "exploding": Rule(signal_rules.exploding, PROFILE),
    "batch_norm": Rule(signal_rules.batch_norm, PROFILE),
    "learning_rate_high": Rule(step_rules.learning_rate_high, ("update_ratio",)),
    "dead": Rule(signal_rules.dead, ("activation_dead_fraction",)),
    "saturated": Rule(signal_rules.saturated, ("activation_saturated_fraction",)),
    "vanishing": Rule(signal_rules.vanishing, PROFILE),
    "clipping": Rule(step_rules.clipping, ("gradient_norm", "clipped_norm", "clipped_cosine", "clipped_fraction")),
    "learning_rate_low": Rule(step_rules.learning_rate_low, ("update_ratio",)),
    "underflow": Rule(step_rules.underflow, ("gradient_float16_underflow", "gradient_bfloat16_underflow")),
}


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found."""

    findings: tuple[Finding, ...]
    """The most serious first."""
    unchecked: dict[str, str]
    """Rules that could not be checked → why."""

    def as_json(self) -> str:
        """The diagnosis as JSON; NaN and infinity are null."""
        return as_json(dataclasses.asdict(self), indent=1) + "\n"

    def worst(self) -> str:
        """The severity of the most serious finding, or "none"."""
        return self.findings[0].severity if self.findings else "none"


def diagnose(history: xr.Dataset, dataset: Dataset | None = None, data_dir: str | Path | None = None) -> Diagnosis:
    """Find what is wrong with the networks of a history, with evidence, cause and advice.

    Each setting of the hypers is diagnosed separately, all its lanes together: a fault is found if at least half of
    the lanes show it. Decays are compared with random draws of a plain network of the same depth and widths at
    criticality, on the run's data scaled to RMS 1.

    Args:
      history: of `vgjax.run` or `vgjax.load`.
      dataset: the run's data; None: the data set that its config names, if it is on this machine; otherwise the draws
        get standard-normal inputs.
      data_dir: folder of prepared data, as for `vgjax.run`.

    Raises:
      ValueError: the history does not say which run it is.

    Example:
      >>> import vgjax
      >>> config = Config(dataset="iris", hidden=(16,) * 8, activation="sigmoid", initializer="lecun_normal", epochs=1)
      >>> diagnose(vgjax.run(config).history).findings[0].rule  # the most serious
      'vanishing'
    """
    config = run_of(history).config
    unchecked = dict(_unchecked(history, config))
    rules = {name: rule for name, rule in RULES.items() if name not in unchecked}
    try:
        reference = critical_draws(config, history, dataset or data_without_network(config, data_dir))
    except (ValueError, ImportError) as error:  # a user's activation that cannot be imported here
        return Diagnosis((), dict.fromkeys(RULES, f"no critical network to compare with: {error}"))
    findings = []
    for hypers, lanes in _by_setting(history):
        case = Case(config, hypers, lanes, _until_diverged(history.isel(lane=lanes)), reference)
        findings += [found for rule in rules.values() if (found := rule.check(case))]
    order = list(RULES)
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), order.index(finding.rule)))
    return Diagnosis(tuple(findings), unchecked)


def write_diagnosis(diagnosis: Diagnosis, folder: Path) -> Path:
    """Write `diagnosis.json` to a run's folder, complete or not at all."""
    path = folder / "diagnosis.json"
    with whole(path) as temporary:
        temporary.write_text(diagnosis.as_json(), encoding="utf-8")
    return path


def _unchecked(history: xr.Dataset, config: Config) -> Iterator[tuple[str, str]]:
    """Rules that cannot be checked, and why."""
    hidden = [name for name in map(str, history["layer"].values) if layer_number(name) <= len(config.hidden)]
    for name, rule in RULES.items():
        missing = [need for need in rule.needs if not any(one in history for one in need.split("|"))]
        if not hidden:
            yield name, "no hidden layer was recorded"
        elif missing:
            yield name, f"not recorded: {', '.join(need.partition('|')[0] for need in missing)}"


def _by_setting(history: xr.Dataset) -> Iterator[tuple[Hypers, np.ndarray]]:
    """Each setting of the hypers, and its lanes."""
    values = np.stack([history[name].values for name in Hypers._fields], axis=1)
    for row in np.unique(values, axis=0):
        lanes = np.flatnonzero((values == row[None]).all(axis=1))
        yield Hypers(*(float(f"{value:.7g}") for value in row)), lanes  # float32 has no more digits


def _until_diverged(history: xr.Dataset) -> xr.Dataset:
    """The history, NaN from the step on at which a lane became NaN or infinite."""
    bad = history["first_bad_step"]
    is_fine = (history["step"] < bad) | (bad < 0)
    floats = [n for n, v in history.data_vars.items() if {"lane", "record"} <= set(v.dims) and v.dtype.kind == "f"]
    return history.assign({name: history[name].where(is_fine) for name in floats})
