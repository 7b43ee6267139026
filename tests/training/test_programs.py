"""Compiled programs: what JAX's cache on disk gives back is what was compiled."""

from __future__ import annotations

import compiling
import jax
import numpy as np
import pytest
import small
from jax import monitoring
from jax._src import compilation_cache

from vgjax import run


@pytest.fixture
def empty_cache(tmp_path):
    """JAX's compilation cache, in a folder of this test alone."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    compiling.forget_programs()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    compilation_cache.reset_cache()


@pytest.fixture
def read_from_disk():
    """The programs that were read from JAX's cache, in a list that grows."""
    found = []

    def listener(name, **_):
        if name == "/jax/compilation_cache/cache_hits":
            found.append(name)

    monitoring.register_event_listener(listener)
    yield found
    monitoring.unregister_event_listener(listener)


@pytest.mark.slow
@pytest.mark.optimised
def test_a_cached_program_gives_the_same_bits(empty_cache, read_from_disk):
    """A history of programs that were compiled, and one of the same programs read from the disk."""
    compiled = run(small.CONFIG, seeds=2, dataset=small.dataset())
    assert list(empty_cache.glob("*-cache")) and not read_from_disk
    compiling.forget_programs()
    read = run(small.CONFIG, seeds=2, dataset=small.dataset())
    assert len(read_from_disk) >= 2  # first states, chunks
    assert small.identical(read.history, compiled.history)
    jax.tree.map(np.testing.assert_array_equal, read.variables, compiled.variables)
