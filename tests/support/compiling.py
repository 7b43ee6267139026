"""How the tests compile: without optimising, in a quarter of the time, but for tests that are marked `optimised`.

What XLA does to a program as a whole stays: its algebra, its fusions, its order. What is left out are the passes of
LLVM and the newer of XLA's two emitters of fused loops, which take three quarters of the time of a small network. JAX's
own `jax_disable_most_optimizations` leaves out the passes alone, and saves one third.
"""

from __future__ import annotations

import gc
import os
from typing import Any

import jax
import jaxlib.version
from jax._src import compiler

from vgjax.training import probe, programs

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
USERS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}  # XLA's defaults
if jaxlib.version.__version_info__ < (0, 11):  # later ones have the newer emitter alone
    QUICK["xla_cpu_use_fusion_emitters"] = False
    USERS["xla_cpu_use_fusion_emitters"] = True
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())  # for processes that tests start

_current = dict(USERS)  # of this process
_users_flags = os.environ.get("XLA_FLAGS", "")


def set_up() -> None:
    """Let what this process compiles from now on follow `compile_as`; XLA itself reads XLA_FLAGS only once."""
    original = compiler.get_compile_options

    def get_compile_options(*args: Any, env_options_overrides: dict | None = None, **options: Any) -> Any:
        return original(*args, env_options_overrides=_current | (env_options_overrides or {}), **options)

    compiler.get_compile_options = get_compile_options


def compile_as(options: dict[str, Any]) -> None:
    """Compile so (`QUICK` or `USERS`) from now on, here and in processes that are started."""
    if options == _current:
        return
    _current.update(options)
    os.environ["XLA_FLAGS"] = f"{_users_flags} {FLAGS}" if options is QUICK else _users_flags
    forget_programs()


def forget_programs() -> None:
    """Whatever was compiled is compiled again where it is needed."""
    for cached in (programs._chunk_program, programs._divergence_program, programs._start_program, probe._program):
        cached.cache_clear()
    jax.clear_caches()
    gc.collect()
