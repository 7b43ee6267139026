"""The free memory of this machine and its speed in matrix products, for the plan of a sweep."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import psutil

MEMORY_LIMIT, MEMORY_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")  # of a container


def free_bytes() -> int:
    """Free memory of all devices together; on CPUs that of the machine, or of its container if that is less."""
    devices = jax.local_devices()
    if all(stats := [device.memory_stats() for device in devices]):
        return sum(one["bytes_limit"] - one["bytes_in_use"] for one in stats)
    free = psutil.virtual_memory().available
    try:
        return min(free, int(MEMORY_LIMIT.read_text()) - int(MEMORY_USED.read_text()))
    except (OSError, ValueError):  # no container, or no limit
        return free


@functools.lru_cache
def matmul_speed(batch_size: int, width: int) -> float:
    """Measured speed of products [batch_size, width] · [width, width] on all devices [operations per second]."""
    x, w = jnp.ones((batch_size, width)), jnp.ones((width, width))
    repeats = max(1, round(1e8 / (2 * batch_size * width**2)))
    many = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda _, x: jnp.tanh(x @ w), x))
    jax.block_until_ready(many(x))
    started = time.perf_counter()
    jax.block_until_ready(many(x))
    n = len(jax.local_devices()) if jax.default_backend() != "cpu" else 1  # the devices of one CPU share its cores
    return n * repeats * 2 * batch_size * width**2 / (time.perf_counter() - started)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had too little memory."""
    words = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
