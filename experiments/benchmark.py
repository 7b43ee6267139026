"""`python -m experiments.benchmark`: what recording costs, and how fast vgjax trains, as ratios measured in one run.

Every contestant is timed once or several times in each turn. A ratio is the median over the turns of one contestant's
time over another's in the same turn, with its 95 % interval by order statistics. Where a few percent decide (bare and
recorded runs, Iris against Keras), contestants alternate within a turn, and each time is divided by its neighbour's,
since the speed of a machine drifts from second to second. Networks: the MXNet tutorial's (784-512-…-16-10, ReLU, batch
128, momentum) on synthetic images, in seconds for 200 steps; and the Keras notebook's (2-128-64-…-3, sigmoid, Adam, 30
epochs of 150 flowers). PyTorch and Keras take part where they are installed (`pip install '.[bench]'`).

Command: `make bench` (15 to 35 minutes on 2 cores). Nothing else should run beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.goals import IRIS_LANES, LANES, rows_of, table
from vgjax.config import Config
from vgjax.data.dataset import Dataset


@dataclass(frozen=True)
class Options:
    """Measure what recording costs, and how fast vgjax trains."""

    out: Path = Path("experiments/results/bench.json")
    """Where the rows go [file]."""
    repeats: int = 9
    """Turns [turns]."""
    smoke: bool = False
    """One turn of everything, with few steps: tests the code, measures nothing."""

    @property
    def steps(self) -> int:
        """Steps on the tutorial's network that a reported time stands for."""
        return 50 if self.smoke else 200


CHUNKS = 5  # the steps run in this many chunks after a first one; the time is CHUNKS times the median chunk's
HISTOGRAM = ("gradient_histogram",)
RECORDINGS: dict[str, tuple[tuple[str, ...], str]] = {  # contestant → what it records, and when
    "bare": ((), "at(0)"),
    "norms": (("norms",), "every(1)"),
    "histograms_10": (HISTOGRAM, "every(10)"),
    "histograms": (HISTOGRAM, "every(1)"),
    "everything_10": (("all",), "every(10)"),
}
ALTERNATING = ((14, tuple(RECORDINGS)), (4, ("iris", "keras_iris")))  # (times in a turn, contestants that alternate)

Contestant = Callable[[int], float]  # turn (−1: warm-up) → seconds


def measure(options: Options) -> dict[str, list[float]]:
    """Seconds of every contestant: one value for each time it runs."""
    contestants = {**_our_contestants(options), **_peer_contestants(options)}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    from rich.progress import track

    turns, order = (1, list(contestants)) if options.smoke else (options.repeats, _order_in_a_turn(contestants))
    if not options.smoke:
        for contestant in contestants.values():  # warm up: compile
            contestant(-1)
    for turn in track(range(turns), description="turns", disable=not sys.stderr.isatty()):
        for name in order:
            seconds[name].append(contestants[name](turn))
    return seconds


def _order_in_a_turn(contestants: Iterable[str]) -> list[str]:
    """The contestants in the order in which one turn runs them: first those that alternate, then the others."""
    alternating = [name for times, names in ALTERNATING for name in names * times if name in contestants]
    return alternating + [name for name in contestants if name not in alternating]


def _our_contestants(options: Options) -> dict[str, Contestant]:
    import experiments.mxnet_mnist as tutorial

    images = _images(options.steps // CHUNKS * tutorial.CLEAN.batch_size)
    config = replace(tutorial.CLEAN, **tutorial.GRID["uniform, relu"], dataset="synthetic", validate="end")
    config = replace(_sized(config, options), epochs=2 if options.smoke else CHUNKS + 1)
    return {
        **{name: _steps_on_images(config, images, *recording) for name, recording in RECORDINGS.items()},
        "matmul": _matrix_products(config, options.steps),
        "lanes": _steps_on_images(config, images, ("norms",), "every(1)", LANES, None),
        "iris": _iris_runs(IRIS_LANES, options.smoke),
        "iris_64": _iris_runs(64, options.smoke),
        "iris_one": _iris_runs(1, options.smoke),
        "deep": _first_step(config, images, 14 if options.smoke else 240),
        "shallow": _first_step(config, images, 2 if options.smoke else 8),
    }


def _sized(config: Config, options: Options) -> Config:
    """The config, in a smoke run of a small network."""
    return replace(config, hidden=(32, 16)) if options.smoke else config


def _steps_on_images(
    config: Config, images: Dataset, record: tuple[str, ...], cadence: str, seeds: int = 1, devices: int | None = 1
) -> Contestant:
    """CHUNKS times the median time between the ends of two chunks: seconds for all steps."""
    import experiments.mxnet_mnist as tutorial
    from vgjax import run

    config = replace(config, record=record, cadence=cadence)

    def seconds(turn: int) -> float:
        ends: list[float] = []
        chunk_ended = lambda part, total: ends.append(time.perf_counter())  # noqa: E731
        run(config, tutorial.HYPERS, seeds, dataset=images, devices=devices, progress=chunk_ended)
        return CHUNKS * float(np.median(np.diff(ends)))

    return seconds


def _iris_runs(lanes: int, smoke: bool) -> Contestant:
    """Seconds of the notebook's Iris network in so many lanes."""
    import experiments.keras_notebook as notebook
    from vgjax import run
    from vgjax.data.catalogue import load

    epochs, fewer = (1, IRIS_LANES // 4) if smoke else (30, 1)
    config = replace(notebook.IRIS, epochs=epochs, record=("norms",), validate="end")  # as the peers, and norms
    flowers = load("iris_petal")

    def seconds(turn: int) -> float:
        begun = time.perf_counter()
        run(config, notebook.ADAM, max(1, lanes // fewer), dataset=flowers)
        return time.perf_counter() - begun

    return seconds


def _first_step(config: Config, images: Dataset, depth: int) -> Contestant:
    """Seconds to compile and run one step of a network of so many hidden layers."""
    import experiments.mxnet_mnist as tutorial
    from vgjax import run

    def seconds(turn: int) -> float:
        # A batch size for each turn, so that no turn finds its program compiled.
        one_step = replace(config, hidden=(128,) * depth, batch_size=30 + turn, steps=1)
        begun = time.perf_counter()
        run(one_step, tutorial.HYPERS, dataset=images, devices=1)
        return time.perf_counter() - begun

    return seconds


def _images(n: int) -> Dataset:
    """n training examples and 1000 test examples of MNIST's shape, of random bytes."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (n + 1000, 784), dtype=np.uint8)
    labels = rng.integers(0, 10, n + 1000).astype(np.int32)
    return Dataset("synthetic", inputs[:n], labels[:n], inputs[n:], labels[n:], 10, (28, 28), "drawn")


def _matrix_products(config: Config, steps: int) -> Contestant:
    """Seconds of the steps' matrix products alone: forward, and backward to the weights and to the inputs."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    widths, batch = (784, *config.hidden, 10), config.batch_size
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    weights = [draw(*shape) for shape in itertools.pairwise(widths)]
    inputs = [draw(batch, width) for width in widths]

    @jax.jit
    def products(weights: list, inputs: list) -> Any:
        def step(_: jax.Array, carry: tuple) -> tuple:
            weights, inputs = carry
            forward = [x @ w for x, w in zip(inputs, weights, strict=False)]
            to_weights = [x.T @ y for x, y in itertools.pairwise(inputs)]
            to_inputs = [y @ w.T for y, w in zip(inputs[2:], weights[1:], strict=True)]
            return to_weights, [inputs[0], *(y + z for y, z in zip(forward, [*to_inputs, 0.0], strict=True))]

        return jax.lax.fori_loop(0, steps, step, (weights, inputs))

    def seconds(turn: int) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(products(weights, inputs))
        return time.perf_counter() - begun

    return seconds


def _peer_contestants(options: Options) -> dict[str, Contestant]:
    """PyTorch and Keras at the same work, as far as they are installed."""
    import experiments.keras_notebook as notebook
    import experiments.mxnet_mnist as tutorial
    from experiments import peers
    from vgjax.data.catalogue import load

    installed = peers.installed()
    steps, few = options.steps, max(2, options.steps // 10)  # histograms take long
    config = replace(tutorial.CLEAN, **tutorial.GRID["uniform, relu"], epochs=1)
    images = _images(steps * config.batch_size)
    pixels = (images.train_inputs / np.float32(256)).astype(np.float32), images.train_labels
    iris = replace(notebook.IRIS, epochs=1 if options.smoke else 30)
    flowers = load("iris_petal")
    petals = flowers.train_inputs, flowers.train_labels
    contestants: dict[str, Contestant] = {}
    if "torch" in installed:
        short = replace(config, steps=few)
        contestants |= {
            "torch": lambda turn: peers.torch_seconds(config, 0.1, *pixels),
            "torch_norms": lambda turn: peers.torch_seconds(config, 0.1, *pixels, "norms"),
            "torch_histograms": lambda turn: steps / few * peers.torch_seconds(short, 0.1, *pixels, "histograms"),
            "torch_iris": lambda turn: peers.torch_seconds(iris, 1e-3, *petals),
        }
    if "keras" in installed:
        contestants |= {
            "keras": lambda turn: peers.keras_seconds(config, 0.1, *pixels),
            "keras_tensorboard": lambda turn: peers.keras_seconds(config, 0.1, *pixels, "tensorboard"),
            "keras_iris": lambda turn: peers.keras_seconds(iris, 1e-3, *petals, cold=True),
        }
    return contestants


def facts(seconds: dict[str, list[float]], options: Options) -> dict[str, Any]:
    """Numbers that are not ratios: times of a step and of the start, and bytes that leave the device at a record."""
    import experiments.mxnet_mnist as tutorial
    from vgjax import run

    images = _images(2 * tutorial.CLEAN.batch_size)
    config = replace(_sized(tutorial.CLEAN, options), dataset="synthetic", steps=1)
    bytes_of = {}
    for name, record in (("norms", ("norms",)), ("default", config.record), ("everything", ("all",))):
        history = run(replace(config, record=record), dataset=images, devices=1).history
        bytes_of[name] = int(
            sum(v.values[:, :1].astype("f4").nbytes for v in history.data_vars.values() if "record" in v.dims)
        )
    start = {}
    for name, code in (("python", "pass"), ("import vgjax.run", "import vgjax; vgjax.run"), ("vgjax --help", None)):
        command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "vgjax", "--help"]
        begun = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        start[name] = round(time.perf_counter() - begun, 2)
    per_step = {
        name: 1e3 * float(np.median(seconds[name])) / options.steps
        for name in (*RECORDINGS, "matmul", "torch")
        if name in seconds
    }
    return {
        "milliseconds_a_step": per_step,
        "seconds_to_start": start,
        "bytes_that_leave_the_device_a_record": bytes_of,
        "seconds_to_the_first_step": {name: float(np.median(seconds[name])) for name in ("shallow", "deep")},
        "iris_runs_a_second": IRIS_LANES / float(np.median(seconds["iris"])),
    }


def main() -> int:
    """Measure, write the rows, and print the table."""
    options = tyro.cli(Options, prog="python -m experiments.benchmark")
    import joblib

    # lanes share the cores, as in the experiments
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(joblib.cpu_count()))
    if options.repeats < 1:
        print(f"error: repeats {options.repeats} is not allowed; allowed: whole numbers from 1", file=sys.stderr)
        return 2
    from experiments import peers
    from vgjax.environment import environment

    versions = peers.installed()  # first, so that TensorFlow is imported with the settings its users have
    begun = time.monotonic()
    seconds = measure(options)
    rows = rows_of(seconds)
    provenance = environment() | {"peers": versions, "load": os.getloadavg(), "processor": _processor()}
    provenance |= {
        "seconds": round(time.monotonic() - begun, 1),
        "options": dataclasses.asdict(options) | {"out": options.out.name},
    }
    content = {
        "rows": rows,
        "facts": facts(seconds, options),
        "seconds": seconds,
        "environment": provenance,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(table(rows))
    print(f"rows: {options.out}")
    return 0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(main())
