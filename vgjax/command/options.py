"""What several subcommands share: options with their help texts, defaults, safe file names, CPU cores as devices."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from vgjax.settings import Settings

FAILED = 1  # exit status
DEFAULTS = Settings()

Folder = Annotated[Path | None, arg(metavar="DIR")]
Count = Annotated[int | None, arg(metavar="INT")]

ConfigFile = Annotated[
    Path | None,
    arg(
        metavar="FILE",
        help="YAML or TOML with any of the fields below, or the config.yaml of a run; options overrule it [file].",
    ),
]
DataDir = Annotated[
    Path | None,
    arg(
        metavar="DIR",
        help="Folder of the prepared data; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder].",
    ),
]
ManualDir = Annotated[
    Path | None, arg(metavar="DIR", help="Original files of the data set, as an alternative to downloading [folder].")
]
Shard = Annotated[
    Literal["auto", "lanes", "batch"],
    arg(help="What is divided among the devices; auto: the lanes if they divide evenly, else the batch."),
]
Devices = Annotated[
    int | None,
    arg(metavar="INT", help="How many devices to use; default: all; on a CPU, every core is one [devices]."),
]
Distributed = Annotated[
    tuple[str, ...] | None,
    arg(
        metavar="[HOST:PORT COUNT INDEX]",
        help="Be one process of a job of several. Without values the cluster is detected (Slurm, Open MPI, Kubernetes, "
        "Cloud TPU); else: address of process 0, number of processes, index of this one.",
    ),
]


def use_cores_as_devices() -> None:
    """On a CPU, make every core a JAX device with lanes of its own: a small lane cannot keep several cores busy.

    JAX reads the variable when it starts, so this does nothing once JAX is imported.
    """
    if "jax" not in sys.modules:
        import joblib  # counts the cores that this process may use: affinity, and a container's quota

        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(joblib.cpu_count()))


def safe_name(name: str) -> str:
    """The name without characters that a file name should not have.

    >>> safe_name("leaky_relu(0.2)")
    'leaky_relu_0.2'
    """
    return re.sub(r"[^\w.=]+", "_", name).strip("_.")
