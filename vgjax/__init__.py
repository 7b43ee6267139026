"""vgjax: how the gradient signal fares, layer by layer: measured, predicted by theory, and explained."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vgjax.config import Config, Hypers
    from vgjax.data import Dataset
    from vgjax.diagnosis import diagnose
    from vgjax.grid import Grid
    from vgjax.history import load
    from vgjax.loop import Result, run
    from vgjax.reruns import rerun
    from vgjax.sweeps import sweep
    from vgjax.watching import histograms, scalars, watch, watched

# Imported when first asked for, so that `vgjax --help` does not wait for JAX.
_HOMES = {
    "Config": "vgjax.config",
    "Hypers": "vgjax.config",
    "Dataset": "vgjax.data",
    "Grid": "vgjax.grid",
    "sweep": "vgjax.sweeps",
    "rerun": "vgjax.reruns",
    "Result": "vgjax.loop",
    "run": "vgjax.loop",
    "load": "vgjax.history",
    "diagnose": "vgjax.diagnosis",
    "watch": "vgjax.watching",
    "watched": "vgjax.watching",
    "scalars": "vgjax.watching",
    "histograms": "vgjax.watching",
}

__all__ = [
    "Config",
    "Dataset",
    "Grid",
    "Hypers",
    "Result",
    "__version__",
    "diagnose",
    "histograms",
    "load",
    "rerun",
    "run",
    "scalars",
    "sweep",
    "watch",
    "watched",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vgjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
