"""Strict shapes and dtypes everywhere, JAX's compilation cache, and a user's environment."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.pop("PYTHONUNBUFFERED", None)  # a user's process buffers what it prints

import compilation_cache

compilation_cache.set_up()

import jax
import pytest

from vgjax.training import chunk_plan, probe, programs

MOST_MAPS = 15_000

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps() -> Iterator[None]:
    """Linux gives a process 65530 memory maps, and every compiled program takes several: all are let go in time."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPS:
        forget_programs()


@pytest.fixture(scope="module")
def compiled_quickly() -> Iterator[None]:
    """Programs are compiled without optimising, in two thirds of the time, for tests that are not about arithmetic."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # in the processes that such tests start
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    forget_programs()  # other tests want them optimised


def forget_programs() -> None:
    """Whatever was compiled is compiled again where it is needed."""
    for cached in (programs._chunk_program, programs._divergence_program, programs._start_program, probe._program):
        cached.cache_clear()
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def an_epoch_a_chunk() -> Iterator[None]:
    """Short epochs are chunks of their own, as long ones are: so that a small run can be interrupted between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_plan, "STEPS_AT_ONCE", 1)
        yield


@pytest.fixture
def no_network(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens at the port named discard
        monkeypatch.setenv(variable.upper(), "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY", "VGJAX_MANUAL_DIR"):
        monkeypatch.delenv(variable, raising=False)
