"""JAX's compilation cache for the tests: what one run has compiled, the next one loads.

Each test process has a folder of its own, as JAX writes entries in place: another process could read half of one. At
its start a process links to the entries that the others have written. Entries of killed processes may be cut short
and would stay so; they are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

MOST_ENTRIES = 20_000  # of a process; then it begins anew


def set_up() -> None:
    """Give this process, and those that it starts, its folder; to be called before anything is compiled.

    The folder is in the user's cache, or where VGJAX_TEST_CACHE says; "off": no cache.
    """
    top = os.environ.get("VGJAX_TEST_CACHE") or str(user_cache_path("vgjax-tests"))
    if top == "off":
        return
    own = Path(top, _machine(), os.environ.get("PYTEST_XDIST_WORKER", "alone"))
    own.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(own)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    import jax

    if jax.config.jax_compilation_cache_dir != str(own):  # JAX was imported before, and has read its environment
        jax.config.update("jax_compilation_cache_dir", str(own))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _share(own)


def _machine() -> str:
    """One name for each kind of processor and version of JAX: code for another one may end the process."""
    info = Path("/proc/cpuinfo")
    features = (
        next((line for line in info.read_text().splitlines() if line.startswith("flags")), "") if info.exists() else ""
    )
    told = [platform.machine(), features, platform.python_version(), version("jaxlib")]
    return hashlib.sha256(" ".join(told).encode()).hexdigest()[:12]


def _share(own: Path) -> None:
    """Link to what the other processes have compiled; what is cut short goes."""
    from jax._src.compilation_cache import decompress_executable

    known = {path.name for path in own.glob("*-cache")}
    if len(known) > MOST_ENTRIES:
        for path in own.glob("*-cache"):
            path.unlink(missing_ok=True)
        known = set()
    checked = own / "checked"
    since = checked.stat().st_mtime if checked.exists() else 0.0
    mine = [path for path in own.glob("*-cache") if path.stat().st_mtime >= since]
    others = [path for path in own.parent.glob("*/*-cache") if path.parent != own and path.name not in known]
    for path in [*mine, *others]:
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            try:
                decompress_executable(path.read_bytes())
            except Exception:
                path.unlink()
                continue
            if path.parent != own and not (own / path.name).exists():
                os.link(path, own / path.name)
    checked.touch()
