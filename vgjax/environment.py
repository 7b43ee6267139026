"""The versions, devices, commit and date with which a result was made."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

COMMIT_FILE = "_commit.txt"  # beside this module in wheels and sdists; `setup.py` writes it
PACKAGES = ("vgjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "tensorflow-datasets", "numpy")


def environment() -> dict[str, Any]:
    """Versions, devices, commit (see `commit`), CPUs that this process may use, date (UTC)."""
    import jax
    import joblib

    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": joblib.cpu_count(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "backend": jax.default_backend(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@functools.cache  # the commit of the running code, even if the files change later
def commit() -> str | None:
    """The commit of this package's code: of the checkout, or the one that its wheel or sdist was built from.

    It ends in "+changes" where Python files differed from the commit; None where it is unknown.
    """
    package = Path(__file__).parent
    top, file = package.parent, package / COMMIT_FILE
    if not (top / ".git").exists():
        return file.read_text().strip() if file.exists() else None
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
    """The release of an installed package, as its metadata has it; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
