"""The only room that knows devices: a program of lanes becomes one `pmap` over all of them.

Either every device trains its own lanes, or every device takes its part of each batch and gradients are summed over
`AXIS`. Within a device the lanes run under `vmap`, in slices.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

AXIS = "device"

Sharding = Literal["auto", "lanes", "batch"]


class Layout(NamedTuple):
    """How the work lies on the devices."""

    n_devices: int
    shard: Literal["lanes", "batch"]

    @property
    def batch_devices(self) -> int:
        """Devices that share one batch."""
        return self.n_devices if self.shard == "batch" else 1

    @property
    def lane_devices(self) -> int:
        """Devices that share the lanes."""
        return self.n_devices if self.shard == "lanes" else 1

    @property
    def axis_name(self) -> str | None:
        """The axis over which gradients and batch statistics are summed, or None."""
        return AXIS if self.batch_devices > 1 else None


def layout(shard: Sharding, n_lanes: int, batch_sizes: tuple[int, ...], n_devices: int | None = None) -> Layout:
    """Choose the layout: lanes over as many devices as share them evenly; where that is one, the batch over all.

    Args:
      shard: "lanes", "batch", or "auto".
      n_lanes: lanes to train.
      batch_sizes: numbers of examples that a step of one lane can have.
      n_devices: how many of the devices to use; None: all.

    Raises:
      ValueError: the lanes or the batch do not divide into the devices.
    """
    available = len(jax.local_devices())
    n = available if n_devices is None else n_devices
    if not 1 <= n <= available:
        raise ValueError(f"{n} devices asked for; allowed: 1 to {available}")
    lanes_divide = n_lanes % n == 0
    batch_divides = all(size % n == 0 for size in batch_sizes)
    if shard == "auto":
        most = max(d for d in range(1, n + 1) if n_lanes % d == 0)  # devices that share the lanes evenly
        return Layout(n, "batch") if most == 1 and batch_divides and n > 1 else Layout(most, "lanes")
    if shard == "lanes" and not lanes_divide:
        raise ValueError(f"{n_lanes} lanes do not divide into {n} devices; take a multiple of {n}, or shard the batch")
    if shard == "batch" and not batch_divides:
        sizes = " and ".join(map(str, batch_sizes))
        raise ValueError(f"batches of {sizes} do not divide into {n} devices; take a multiple of {n}, or shard lanes")
    return Layout(n, shard)


def device_index(where: Layout) -> jax.Array:
    """Which part of the batch this device takes, inside the program."""
    return jax.lax.axis_index(AXIS) if where.batch_devices > 1 else jnp.int32(0)


def total(where: Layout, tree: Any) -> Any:
    """Sum over the devices that share a batch."""
    return jax.lax.psum(tree, AXIS) if where.batch_devices > 1 else tree


def whole_batch(where: Layout, tree: Any, axis: int) -> Any:
    """The examples of all devices that share a batch, along `axis`, counted from the last (−1)."""
    if where.batch_devices == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=x.ndim + axis, tiled=True), tree)


def place(where: Layout, shared: Any, lanes: Any) -> tuple[Any, Any]:
    """Put what is shared, and the lanes [n_lanes, …], where `program` wants them, so that no call moves or recompiles.

    Lanes are best on the host: there a reshape costs nothing, and on a device it is a program a shape.

    Returns:
      shared, replicated; and lanes as [devices, n_lanes / devices, …], or replicated where the batch is sharded.
    """
    replicated = jax.sharding.NamedSharding(_mesh(where), jax.sharding.PartitionSpec())
    shared = jax.device_put(shared, replicated)
    if where.shard == "batch":
        return shared, jax.device_put(lanes, replicated)
    parts = jax.tree.map(lambda x: x.reshape(where.n_devices, -1, *x.shape[1:]), lanes)
    return shared, jax.device_put(parts, _split(where))


def gather(where: Layout, lanes: Any) -> Any:
    """Placed lanes, or results, back on the host as [n_lanes, …]."""
    lanes = jax.device_get(lanes)
    if where.shard == "batch":
        return lanes
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lanes)


def program(where: Layout, one_lane: Callable[..., Any], lane_bytes: int) -> Callable[..., Any]:
    """Compile `one_lane(shared, lane)` for all lanes on all devices, under one `pmap`.

    Args:
      where: the layout.
      one_lane: a pure function of what is shared and of one lane.
      lane_bytes: size of a lane's state, from which the slice that runs under one `vmap` follows.

    Returns:
      A function of (shared, lanes) as `place` gives them; its results lie as the lanes do.
    """

    def all_lanes(device: jax.Array, shared: Any, lanes: Any) -> Any:
        n = jax.tree.leaves(lanes)[0].shape[0]
        if n == 1:  # one lane costs no more than without vmap
            result = one_lane(shared, jax.tree.map(lambda x: x[0], lanes))
            return jax.tree.map(lambda x: x[None], result)
        size = slice_size(n, lane_bytes)
        if size == n:
            return jax.vmap(one_lane, in_axes=(None, 0))(shared, lanes)
        return jax.lax.map(lambda lane: one_lane(shared, lane), lanes, batch_size=size if size > 1 else None)

    axis = 0 if where.shard == "lanes" else None
    compiled = jax.pmap(all_lanes, axis_name=AXIS, in_axes=(0, None, axis), out_axes=axis, devices=_devices(where))
    # pmap wants something to map over
    numbers = jax.device_put(np.arange(where.n_devices, dtype=np.int32), _split(where))
    return partial(compiled, numbers)


def start_program(one_lane: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `one_lane(shared, lane)` for all lanes, to run once: on a CPU compiling takes far longer than running.

    There the lanes run one by one: XLA's pool of threads waits for itself when several batched QR decompositions
    (orthogonal weights of as many layers) share it, and never ends.
    """
    if jax.default_backend() != "cpu":
        return jax.jit(jax.vmap(one_lane, in_axes=(None, 0)))

    def all_lanes(shared: Any, lanes: Any) -> Any:
        return jax.lax.map(partial(one_lane, shared), lanes)

    return jax.jit(all_lanes, compiler_options={"xla_backend_optimization_level": 0})


CPU_CACHE_BYTES = 4_000_000


def slice_size(n_lanes: int, lane_bytes: int) -> int:
    """Lanes under one vmap: all of them, but on a CPU no more than its cache holds (a divisor of n_lanes)."""
    if jax.default_backend() != "cpu":
        return n_lanes
    fitting = max(1, CPU_CACHE_BYTES // max(1, lane_bytes))
    return max(size for size in range(1, n_lanes + 1) if n_lanes % size == 0 and size <= fitting)


def device_count() -> int:
    """How many devices there are."""
    return len(jax.local_devices())


def free_bytes() -> int:
    """Memory that is free on the devices together; on CPUs, the machine's, within the limit of its container."""
    devices = jax.local_devices()
    if all(stats := [device.memory_stats() for device in devices]):
        return sum(one["bytes_limit"] - one["bytes_in_use"] for one in stats)
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(free, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


@functools.lru_cache
def matmul_speed(batch_size: int, width: int) -> float:
    """Floating-point operations a second in products [batch_size, width] · [width, width] of all devices, measured."""
    x, w = jnp.ones((batch_size, width)), jnp.ones((width, width))
    repeats = max(1, round(1e8 / (2 * batch_size * width**2)))
    many = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda _, x: jnp.tanh(x @ w), x))
    jax.block_until_ready(many(x))
    started = time.perf_counter()
    jax.block_until_ready(many(x))
    n = len(jax.local_devices()) if jax.default_backend() != "cpu" else 1  # devices of a CPU share its cores
    return n * repeats * 2 * batch_size * width**2 / (time.perf_counter() - started)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had too little memory."""
    words = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def _split(where: Layout) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(_mesh(where), jax.sharding.PartitionSpec(AXIS))


def _mesh(where: Layout) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(_devices(where), AXIS)


def _devices(where: Layout) -> list[jax.Device]:
    return jax.local_devices()[: where.n_devices]
