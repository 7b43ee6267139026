"""The versions, devices, commit and date with which a result was made."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("vgjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "tensorflow-datasets", "numpy")


def environment() -> dict[str, Any]:
    """Versions, devices, commit ("+changes" where the tree differs; None outside a checkout), date (UTC)."""
    import jax

    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "backend": jax.default_backend(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@functools.cache  # the commit of the running code, even if the files change later
def commit() -> str | None:
    """The commit of the checkout that this package is imported from."""
    top = Path(__file__).parent.parent
    if not (top / ".git").exists():
        return None
    revision = _git(top, "rev-parse", "HEAD")
    return revision and revision + ("+changes" if _git(top, "status", "--porcelain", "--", "*.py") else "")


def _git(top: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(top), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
