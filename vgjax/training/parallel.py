"""How lanes and batches are divided among devices, and how the processes of a job agree: one `pmap` over all devices.

Either every device trains its own lanes, or every device takes its part of each batch and the gradients are summed over
`AXIS`. The lanes of one device run under `vmap`, on a CPU one after the other. Each process of a job (see `processes`)
drives its own devices, and all of them run the same code; the first one alone prints and writes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from vgjax.config import typed

AXIS = "device"
T = TypeVar("T")
P = ParamSpec("P")

Sharding = Literal["auto", "lanes", "batch"]


class Layout(NamedTuple):
    """How the work is divided among the devices."""

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
    """Choose the layout; "auto" takes as many devices as divide the lanes evenly, or all of them for the batch.

    "auto" divides the batch if otherwise one device, or none, would do all the work. But on a CPU, whose devices are
    its cores, one core keeps the whole batch: then a lane gives the same bits whatever runs beside it.

    Args:
      shard: "lanes", "batch", or "auto".
      n_lanes: lanes to train.
      batch_sizes: the numbers of examples that a step of one lane can have.
      n_devices: how many devices to use, the same number in every process; None: all.

    Raises:
      ValueError: the devices do not divide the lanes, or the batch, evenly.
    """
    typed("shard", shard, Sharding)
    processes = jax.process_count()
    available = len(jax.local_devices()) * processes
    n = available if n_devices is None else typed("devices", n_devices, int)
    if not 1 <= n <= available or n % processes:
        each = f", a multiple of the {processes} processes" if processes > 1 else ""
        raise ValueError(f"{n} devices asked for; allowed: {processes} to {available}{each}")
    lanes_divide = n_lanes % n == 0
    batch_divides = all(size % n == 0 for size in batch_sizes)
    if shard == "auto":
        even = [d for d in range(processes, n + 1, processes) if n_lanes % d == 0]
        most = max(even, default=0)
        devices_idle = not most or (most == 1 < n and jax.default_backend() != "cpu")
        if devices_idle and batch_divides:
            return Layout(n, "batch")
        if most:
            return Layout(most, "lanes")
    if shard != "batch" and not lanes_divide:
        raise ValueError(
            f"{n_lanes} lanes do not divide into {n} devices; allowed: a multiple of {n}, or shard the batch"
        )
    if shard == "batch" and not batch_divides:
        sizes = " and ".join(map(str, batch_sizes))
        raise ValueError(
            f"batches of {sizes} do not divide into {n} devices; allowed: a multiple of {n}, or shard lanes"
        )
    return Layout(n, "batch" if shard == "batch" else "lanes")


def in_float32(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function compute in float32 even with JAX_ENABLE_X64, so that its programs and numbers are the same."""

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return inner


def device_index(where: Layout) -> jax.Array:
    """Which part of the batch this device takes; to be called inside the compiled program."""
    return jax.lax.axis_index(AXIS) if where.batch_devices > 1 else jnp.int32(0)


def total(where: Layout, tree: Any) -> Any:
    """Sum over the devices that share a batch."""
    return jax.lax.psum(tree, AXIS) if where.batch_devices > 1 else tree


def whole_batch(where: Layout, tree: Any, axis: int) -> Any:
    """The examples of all devices that share a batch, joined along `axis`, which is counted from the last (−1)."""
    if where.batch_devices == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=x.ndim + axis, tiled=True), tree)


def place(where: Layout, shared: Any, lanes: Any) -> tuple[Any, Any]:
    """Put the shared arrays and the lanes [n_lanes, …] on the devices as `program` takes them.

    Then no call of the program moves or recompiles anything. Give the lanes as host arrays: the host reshapes them
    for free, where a device needs one compiled program for each shape. Every process gives all lanes and keeps its own.

    Returns:
      The shared arrays, replicated; and the lanes as [devices of this process, n_lanes / devices, …], or replicated if
      the devices divide the batch.
    """
    replicated = NamedSharding(_mesh(where).local_mesh, PartitionSpec())
    shared = jax.device_put(shared, replicated)
    if where.shard == "batch":
        return shared, jax.device_put(lanes, replicated)
    here = len(_mesh(where).local_devices)
    own = slice(jax.process_index() * here, (jax.process_index() + 1) * here)
    parts = jax.tree.map(lambda x: x.reshape(where.n_devices, -1, *x.shape[1:])[own], lanes)
    return shared, jax.device_put(parts, _split(where))


def gather(where: Layout, lanes: Any) -> Any:
    """Bring lanes or results from the devices of all processes to every host, as [n_lanes, …]."""
    if where.shard == "batch":
        return jax.device_get(lanes)
    if jax.process_count() > 1:
        everywhere = multihost_utils.host_local_array_to_global_array(lanes, _mesh(where), PartitionSpec(AXIS))
        copies = jax.jit(_identity, out_shardings=NamedSharding(_mesh(where), PartitionSpec()))(everywhere)
        lanes = multihost_utils.global_array_to_host_local_array(copies, _mesh(where), PartitionSpec())
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(lanes))


def _identity(tree: Any) -> Any:
    return tree  # at the module's top level, so that jit compiles it once


def is_first() -> bool:
    """Whether this process prints and writes for the job; a process without others does."""
    return jax.process_index() == 0


def on_any_process(here: bool) -> bool:
    """Whether it is true in any process of the job; all processes must call this."""
    return here if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.bool_(here)).any())


def on_first_process(do: Callable[[], T]) -> T | None:
    """Call `do` in the first process alone, and return its result there, None elsewhere.

    The other processes wait for it; if it fails, all processes raise.
    """
    if jax.process_count() == 1:
        return do()
    result, failure = None, None
    if is_first():
        try:
            result = do()
        except Exception as error:
            failure = error
    if on_any_process(failure is not None):
        raise failure or ValueError("stopped because process 0 failed; it says why")
    return result


def from_first_process(do: Callable[[], T]) -> T:
    """Call `do` in the first process alone, and return its result in all of them; if it fails, all processes raise."""
    found = on_first_process(do)
    if jax.process_count() == 1:
        return found  # type: ignore[return-value]
    content = np.frombuffer(pickle.dumps(found), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    return pickle.loads(multihost_utils.broadcast_one_to_all(np.resize(content, size)).tobytes())


def program(where: Layout, one_lane: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `one_lane(shared, lane)` for all lanes on all devices, under one `pmap`.

    On a CPU the lanes of a device run one after the other, in a loop inside the program: a lane then gives the same
    bits whatever runs beside it, and the cores, one device each, finish as many lanes in a second as under one `vmap`.

    Args:
      where: the layout.
      one_lane: a pure function of the shared arrays and of one lane.

    Returns:
      A function of (shared, lanes) as `place` gives them; its results are divided among the devices like the lanes.
    """

    def all_lanes(device: jax.Array, shared: Any, lanes: Any) -> Any:
        if jax.default_backend() == "cpu":
            return jax.lax.map(partial(one_lane, shared), lanes)
        return jax.vmap(one_lane, in_axes=(None, 0))(shared, lanes)

    axis = 0 if where.shard == "lanes" else None
    compiled = jax.pmap(all_lanes, axis_name=AXIS, in_axes=(0, None, axis), out_axes=axis, devices=_devices(where))
    # pmap needs an argument to map over, also when it maps no lanes
    numbers = jax.device_put(np.arange(len(_mesh(where).local_devices), dtype=np.int32), _split(where))
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        # on CPUs the messages of two programs that run at once can be mixed up
        return lambda shared, lanes: jax.block_until_ready(compiled(numbers, shared, lanes))
    return partial(compiled, numbers)


def start_program(one_lane: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `one_lane(shared, lane)` for all lanes, to run once.

    On a CPU compiling takes longer than running, so LLVM optimizes at level 1: level 0 compiles a fifth faster but
    draws five times as slowly, which costs more for hundreds of lanes; levels 2 and 3 draw no faster.

    The lanes run one after the other there. Under `vmap`, several batched QR decompositions (orthogonal weights of
    several layers) share XLA's pool of threads, which then waits for itself and never ends. This can go when XLA runs
    them.
    """
    if jax.default_backend() != "cpu":
        return jax.jit(jax.vmap(one_lane, in_axes=(None, 0)))

    def all_lanes(shared: Any, lanes: Any) -> Any:
        return jax.lax.map(partial(one_lane, shared), lanes)

    return jax.jit(all_lanes, compiler_options={"xla_backend_optimization_level": 1})


def device_count() -> int:
    """How many devices all processes have together."""
    return jax.device_count()


def _split(where: Layout) -> NamedSharding:
    return NamedSharding(_mesh(where).local_mesh, PartitionSpec(AXIS))


def _mesh(where: Layout) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(_devices(where), AXIS)


def _devices(where: Layout) -> list[jax.Device]:
    """The devices of the layout, the same number from every process, one process after the other."""
    each = where.n_devices // jax.process_count()
    return [device for i in range(jax.process_count()) for device in jax.local_devices(i)[:each]]
