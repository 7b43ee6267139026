"""The only room that knows devices: a program of lanes becomes one `pmap` over all of them, on however many machines.

Either every device trains its own lanes, or every device takes its part of each batch and gradients are summed over
`AXIS`. Within a device the lanes run under `vmap`, or one by one on a CPU. Of a job's processes (`processes`) each
drives its own devices and all do the same; the first speaks and writes for all.
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

    A CPU's devices are its cores; there one of them keeps the whole batch, so that a lane has the same bits whatever
    runs beside it.

    Args:
      shard: "lanes", "batch", or "auto".
      n_lanes: lanes to train.
      batch_sizes: numbers of examples that a step of one lane can have.
      n_devices: how many of the devices to use, as many of each process; None: all.

    Raises:
      ValueError: the lanes or the batch do not divide into the devices.
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
        shared_by = [d for d in range(processes, n + 1, processes) if n_lanes % d == 0]  # evenly
        most = max(shared_by, default=0)
        lonely = not most or (most == 1 < n and jax.default_backend() != "cpu")
        if lonely and batch_divides:
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
    """The function, computing in float32 whatever JAX_ENABLE_X64 says: the same programs, numbers and verdicts."""

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return inner


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

    Lanes are best on the host: there a reshape costs nothing, and on a device it is a program a shape. Every process
    has all of them there, and keeps its own.

    Returns:
      shared, replicated; and lanes as [devices here, n_lanes / devices, …], or replicated where the batch is sharded.
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
    """Placed lanes, or results, of all processes back on every host as [n_lanes, …]."""
    if where.shard == "batch":
        return jax.device_get(lanes)
    if jax.process_count() > 1:
        everywhere = multihost_utils.host_local_array_to_global_array(lanes, _mesh(where), PartitionSpec(AXIS))
        copies = jax.jit(_same, out_shardings=NamedSharding(_mesh(where), PartitionSpec()))(everywhere)
        lanes = multihost_utils.global_array_to_host_local_array(copies, _mesh(where), PartitionSpec())
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(lanes))


def _same(tree: Any) -> Any:
    return tree


def is_first() -> bool:
    """Whether this process speaks and writes for the job; one that is alone does."""
    return jax.process_index() == 0


def anywhere(here: bool) -> bool:
    """Whether that is so at any process; all must ask."""
    return here if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.bool_(here)).any())


def at_first(do: Callable[[], T]) -> T | None:
    """What `do` gives at the first process, None at the others, which wait for it; where it fails, all do."""
    if jax.process_count() == 1:
        return do()
    result, failure = None, None
    if is_first():
        try:
            result = do()
        except Exception as error:
            failure = error
    if anywhere(failure is not None):
        raise failure or ValueError("stopped, as process 0 had to; it says why")
    return result


def from_first(do: Callable[[], T]) -> T:
    """What `do` gives at the first process, brought to every one; where it fails, all do."""
    found = at_first(do)
    if jax.process_count() == 1:
        return found  # type: ignore[return-value]
    words = np.frombuffer(pickle.dumps(found), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(words.size)))
    return pickle.loads(multihost_utils.broadcast_one_to_all(np.resize(words, size)).tobytes())


def program(where: Layout, one_lane: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `one_lane(shared, lane)` for all lanes on all devices, under one `pmap`.

    On a CPU the lanes of a device run one by one, in a loop inside the program: a lane then has the same bits whatever
    runs beside it, and its cores, a device each, do as many lanes in a second as they do under one `vmap`.

    Args:
      where: the layout.
      one_lane: a pure function of what is shared and of one lane.

    Returns:
      A function of (shared, lanes) as `place` gives them; its results lie as the lanes do.
    """

    def all_lanes(device: jax.Array, shared: Any, lanes: Any) -> Any:
        if jax.default_backend() == "cpu":
            return jax.lax.map(partial(one_lane, shared), lanes)
        return jax.vmap(one_lane, in_axes=(None, 0))(shared, lanes)

    axis = 0 if where.shard == "lanes" else None
    compiled = jax.pmap(all_lanes, axis_name=AXIS, in_axes=(0, None, axis), out_axes=axis, devices=_devices(where))
    # pmap wants something to map over
    numbers = jax.device_put(np.arange(len(_mesh(where).local_devices), dtype=np.int32), _split(where))
    if jax.process_count() > 1 and jax.default_backend() == "cpu":  # where two programs' messages could be mixed up
        return lambda shared, lanes: jax.block_until_ready(compiled(numbers, shared, lanes))
    return partial(compiled, numbers)


def start_program(one_lane: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `one_lane(shared, lane)` for all lanes, to run once: on a CPU compiling takes longer than running.

    So LLVM optimizes a little there: unoptimized code compiles a fifth faster and draws five times as long, which for
    hundreds of lanes is more; code of the higher levels draws no faster. And the lanes run one by one: XLA's pool of
    threads waits for itself when several batched QR decompositions (orthogonal weights of as many layers) share it,
    and never ends.
    """
    if jax.default_backend() != "cpu":
        return jax.jit(jax.vmap(one_lane, in_axes=(None, 0)))

    def all_lanes(shared: Any, lanes: Any) -> Any:
        return jax.lax.map(partial(one_lane, shared), lanes)

    return jax.jit(all_lanes, compiler_options={"xla_backend_optimization_level": 1})


def device_count() -> int:
    """How many devices there are, of all processes."""
    return jax.device_count()


def _split(where: Layout) -> NamedSharding:
    return NamedSharding(_mesh(where).local_mesh, PartitionSpec(AXIS))


def _mesh(where: Layout) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(_devices(where), AXIS)


def _devices(where: Layout) -> list[jax.Device]:
    """As many of every process, one process after the other."""
    each = where.n_devices // jax.process_count()
    return [device for i in range(jax.process_count()) for device in jax.local_devices(i)[:each]]
