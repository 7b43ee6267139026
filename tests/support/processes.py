"""The environment of processes that a test starts."""

from __future__ import annotations

import os

from compiling import FLAGS
from paths import SUPPORT, TOP


def environment(devices):
    """So many virtual devices; programs compile without optimising."""
    paths = os.pathsep.join([str(SUPPORT), str(TOP), os.environ.get("PYTHONPATH", "")])
    own = {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, "XLA_FLAGS": FLAGS}
    return {**os.environ, **own}
