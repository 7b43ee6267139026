"""What is wrong with a network: rules, applied to every setting of a history."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr

from vgjax.config import Config, Hypers
from vgjax.data import batches
from vgjax.data.catalogue import EMBEDDED, Dataset, default_data_dir, load
from vgjax.diagnosis import signal_rules, step_rules
from vgjax.diagnosis.case import Case, Finding, Reference
from vgjax.files import whole
from vgjax.network.layer_names import layer_name, layer_names, layer_number
from vgjax.report import as_json
from vgjax.settings import run_of
from vgjax.theory.criticality import critical_variance
from vgjax.theory.ensemble import draw_networks

N_DRAWS = 32
MOST_EXAMPLES = 64
SEVERITIES = ("serious", "warning")


@dataclass(frozen=True)
class Rule:
    """A row: what the rule looks at, and the rule."""

    check: Callable[[Case], Finding | None]
    needs: tuple[str, ...]


PROFILE = ("delta_log10_rms|gradient_log10_rms",)  # either
RULES: dict[str, Rule] = {  # the root of several troubles before what comes of it
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
    """The findings, most serious first; and the rules that could not be checked, with what they lack."""

    findings: tuple[Finding, ...]
    unchecked: dict[str, str]

    def as_json(self) -> str:
        """Plain JSON; what is not a number is null."""
        return as_json(dataclasses.asdict(self), indent=1) + "\n"

    def worst(self) -> str:
        """The severity of the most serious finding, or "none"."""
        return self.findings[0].severity if self.findings else "none"


def diagnose(history: xr.Dataset, dataset: Dataset | None = None, data_dir: str | Path | None = None) -> Diagnosis:
    """Findings with evidence, cause and advice, for each setting of the hypers by itself.

    Lanes of one setting are looked at together: what the median lane shows is found. Decays are compared with random
    draws of an equally deep and wide plain network at criticality, on the run's data scaled to RMS 1.

    Args:
      history: of `vgjax.run` or `vgjax.load`.
      dataset: the run's data; None: what its config names, where that is at hand without a network, else the draws get
        standard-normal inputs.
      data_dir: where prepared data lie, as for `vgjax.run`.

    Raises:
      ValueError: the history does not say which run it is.

    Example:
      >>> import vgjax
      >>> config = Config(dataset="iris", hidden=(16,) * 8, activation="sigmoid", initializer="lecun_normal", epochs=1)
      >>> [finding.rule for finding in diagnose(vgjax.run(config).history).findings]
      ['vanishing']
    """
    config = run_of(history).config
    unchecked = dict(_unchecked(history, config))
    rules = {name: rule for name, rule in RULES.items() if name not in unchecked}
    try:
        reference = critical_draws(config, history, dataset or _at_hand(config, data_dir))
    except (ValueError, ImportError) as error:  # a stranger's activation that is not here
        return Diagnosis((), dict.fromkeys(RULES, f"no critical network to compare with: {error}"))
    findings = []
    for hypers, lanes in _by_setting(history):
        case = Case(config, hypers, lanes, _finite(history.isel(lane=lanes)), reference)
        findings += [found for rule in rules.values() if (found := rule.check(case))]
    order = list(RULES)
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), order.index(finding.rule)))
    return Diagnosis(tuple(findings), unchecked)


def write(diagnosis: Diagnosis, folder: Path) -> Path:
    """`diagnosis.json` in a run's folder; the file is there whole or not at all."""
    path = folder / "diagnosis.json"
    with whole(path) as temporary:
        temporary.write_text(diagnosis.as_json(), encoding="utf-8")
    return path


def _unchecked(history: xr.Dataset, config: Config) -> Iterator[tuple[str, str]]:
    """Rules whose statistics were not recorded."""
    hidden = [name for name in map(str, history["layer"].values) if layer_number(name) <= len(config.hidden)]
    for name, rule in RULES.items():
        missing = [need for need in rule.needs if not any(one in history for one in need.split("|"))]
        if not hidden:
            yield name, "no hidden layer was recorded"
        elif missing:
            yield name, f"not recorded: {', '.join(need.partition('|')[0] for need in missing)}"


def _by_setting(history: xr.Dataset) -> Iterator[tuple[Hypers, np.ndarray]]:
    values = np.stack([history[name].values for name in Hypers._fields], axis=1)
    for row in np.unique(values, axis=0):
        lanes = np.flatnonzero((values == row[None]).all(axis=1))
        yield Hypers(*(float(f"{value:.7g}") for value in row)), lanes  # float32 has no more digits


def _finite(history: xr.Dataset) -> xr.Dataset:
    """The history without what its lanes recorded after they left the finite numbers."""
    bad = history["first_bad_step"]
    is_fine = (history["step"] < bad) | (bad < 0)
    floats = [n for n, v in history.data_vars.items() if {"lane", "record"} <= set(v.dims) and v.dtype.kind == "f"]
    return history.assign({name: history[name].where(is_fine) for name in floats})


def critical_draws(config: Config, history: xr.Dataset, data: Dataset | None = None) -> Reference:
    """Draws of the plain network of these widths at the σ_w² where its depth neither shrinks nor grows the gradient.

    Args:
      config: the run's.
      history: for the widths of inputs and outputs.
      data: the run's, or None.
    """
    fans = {str(name): i for i, name in enumerate(history["layer"].values)}
    last = layer_name(len(config.hidden) + 1)
    features = int(history["fan_in"].values[fans["layer_1"]]) if "layer_1" in fans else 0
    classes = int(history["fan_out"].values[fans[last]]) if last in fans else 0
    if data is not None:
        features, classes = features or data.train_inputs.shape[1], classes or data.classes
    features, classes = features or config.hidden[0], classes or 10
    n = min(config.batch_size, MOST_EXAMPLES)
    inputs, source = np.random.default_rng(0).standard_normal((n, features)), "standard normal"
    if data is not None and data.train_inputs.shape[1] == features:
        inputs, source = _inputs(config, data, n), f"{data.name}, scaled to RMS 1"
    sigma_w2 = critical_variance(config.activation, len(config.hidden))
    plain = Config(hidden=config.hidden, activation=config.activation, initializer="mean_field")
    return Reference(_draws(plain, inputs.tobytes(), features, classes, sigma_w2), sigma_w2, source)


@lru_cache(maxsize=64)
def _draws(config: Config, inputs: bytes, features: int, classes: int, sigma_w2: float) -> xr.Dataset:
    x = np.frombuffer(inputs).reshape(-1, features)
    hypers, labels = Hypers(sigma_w=math.sqrt(sigma_w2)), np.arange(len(x)) % classes
    xs, ys = (np.broadcast_to(one, (N_DRAWS, *one.shape)) for one in (x, labels))
    drawn = draw_networks(config, hypers, xs, ys, classes, len(x))
    names = layer_names(len(config.hidden) + 1)
    columns = {name: (("draw", "layer"), values) for name, values in drawn._asdict().items()}
    draws = xr.Dataset(columns, {"layer": names})
    with np.errstate(divide="ignore"):
        return draws.assign({f"{name}_log10_rms": np.log10(draws[f"{name}_rms"]) for name in ("delta", "gradient")})


def _at_hand(config: Config, data_dir: str | Path | None) -> Dataset | None:
    """The run's data where no network is needed for them."""
    name, cache = str(config.dataset), Path(os.path.expanduser(data_dir or default_data_dir()), "arrays")
    if name in EMBEDDED or (cache / f"{name}.npz").is_file():
        try:
            return load(name, data_dir)
        except ValueError:
            return None
    return None


def _inputs(config: Config, data: Dataset, n: int) -> np.ndarray:
    """Examples from all over the data, which may be sorted, as the network sees them, scaled to RMS 1."""
    train, _ = batches.arrays(data, replace(config, batch_size=1, replicas=1, holdout=0))
    inputs, _, shift, scale = map(np.asarray, train)
    rows = np.linspace(0, len(inputs) - 1, n).astype(int)
    x = (inputs[rows].astype(np.float64) - shift) * scale
    rms = np.sqrt(np.mean(np.square(x)))
    return x / (rms if rms > 0 else 1.0)
