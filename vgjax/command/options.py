"""What the subcommands of `vgjax` share: kinds of options, defaults, folders' names, a CPU's cores as devices."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from vgjax.settings import Settings

FAILED = 1  # exit status
DEFAULTS = Settings()

Folder = Annotated[Path | None, arg(metavar="DIR")]
File = Annotated[Path | None, arg(metavar="FILE")]
Count = Annotated[int | None, arg(metavar="INT")]
Distributed = Annotated[tuple[str, ...] | None, arg(metavar="[HOST:PORT COUNT INDEX]")]


def cores_are_devices() -> None:
    """Make every core a device of JAX: a small lane cannot keep several cores busy, so each core trains its own."""
    if "jax" not in sys.modules:
        import joblib  # counts the cores that this process may use: affinity, and a container's quota

        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(joblib.cpu_count()))


def plain_name(name: str) -> str:
    """A name that can be a folder's."""
    return re.sub(r"[^\w.=]+", "_", name).strip("_.")
