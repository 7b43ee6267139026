"""`python -m experiments.benchmark`: what the instrument costs, and how fast it trains, as ratios measured in one run.

Everything is measured in turns, several times over; a ratio is the median over the turns of one time over another of
the same turn, with its 95 % interval by order statistics. What a few percents decide (bare and watched runs, Iris
against Keras) alternates within a turn, and a ratio of two such is of neighbours, since a machine's speed drifts from
second to second. Networks: the MXNet tutorial's (784-512-…-16-10, ReLU, batch 128, momentum) on synthetic images, as
seconds for 200 steps; and the Keras notebook's (2-128-64-…-3, sigmoid, Adam, 30 epochs of 150 flowers). PyTorch and
Keras take part where they are installed (`pip install '.[bench]'`).

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


@dataclass(frozen=True)
class Options:
    """Measure what the instrument costs, and how fast it trains."""

    out: Path = Path("experiments/results/bench.json")
    """Where the rows go [file]."""
    repeats: int = 9
    """Turns [turns]."""
    smoke: bool = False
    """One turn of everything, on few steps: tests the code, measures nothing."""

    @property
    def steps(self) -> int:
        """Steps on the tutorial's network whose seconds are told."""
        return 50 if self.smoke else 200


CHUNKS = 5  # a watch runs the steps in so many, after a first one; its time is that of the median chunk
HISTOGRAM = ("gradient_histogram",)
WATCHES: dict[str, tuple[tuple[str, ...], str]] = {  # what is recorded, and when
    "bare": ((), "at(0)"),
    "norms": (("norms",), "every(1)"),
    "histograms_10": (HISTOGRAM, "every(10)"),
    "histograms": (HISTOGRAM, "every(1)"),
    "everything_10": (("all",), "every(10)"),
}
CLOSE = ((14, tuple(WATCHES)), (4, ("iris", "keras_iris")))  # what alternates, so many times a turn


def measure(options: Options) -> dict[str, list[float]]:
    """Seconds of every contestant, one value a turn, or one an alternation."""
    contestants = {**_ours(options), **_peers(options)}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    from rich.progress import track

    turns, one_after_other = (1, list(contestants)) if options.smoke else (options.repeats, _turn(contestants))
    for contest in contestants.values():  # warm up: compile
        contest(-1)
    for turn in track(range(turns), description="turns", disable=not sys.stderr.isatty()):
        for name in one_after_other:
            seconds[name].append(contestants[name](turn))
    return seconds


def _turn(contestants: Iterable[str]) -> list[str]:
    """Who is measured after whom."""
    alternating = [name for times, names in CLOSE for name in names * times]
    there = [name for name in alternating if name in contestants]
    return there + [name for name in contestants if name not in there]


def _ours(options: Options) -> dict[str, Callable[[int], float]]:
    import experiments.keras_notebook as notebook
    import experiments.mxnet_mnist as tutorial
    from vgjax import run
    from vgjax.data.catalogue import load

    steps = options.steps
    images = _images(steps // CHUNKS * tutorial.CLEAN.batch_size)
    tutorials = replace(tutorial.CLEAN, **tutorial.GRID["uniform, relu"], dataset="synthetic", validate="end")
    tutorials = replace(tutorials, epochs=CHUNKS + 1)
    if options.smoke:
        tutorials = replace(tutorials, hidden=(32, 16), epochs=2)

    def chunk(record: tuple[str, ...], cadence: str, seeds: int = 1, devices: int | None = 1) -> Callable[[int], float]:
        """Seconds for the steps, by the median chunk: from one landing to the next."""
        config = replace(tutorials, record=record, cadence=cadence)

        def seconds(turn: int) -> float:
            landings: list[float] = []
            landed = lambda part, total: landings.append(time.perf_counter())  # noqa: E731
            run(config, tutorial.HYPERS, seeds, dataset=images, devices=devices, progress=landed)
            return CHUNKS * float(np.median(np.diff(landings)))

        return seconds

    epochs, share = (1, IRIS_LANES // 4) if options.smoke else (30, 1)
    iris = replace(notebook.IRIS, epochs=epochs, record=("norms",), validate="end")  # as the others, but for norms
    flowers = load("iris_petal")

    def iris_runs(lanes: int) -> Callable[[int], float]:
        def seconds(turn: int) -> float:
            begun = time.perf_counter()
            run(iris, notebook.ADAM, max(1, lanes // share), dataset=flowers)
            return time.perf_counter() - begun

        return seconds

    def first_step(depth: int) -> Callable[[int], float]:
        def seconds(turn: int) -> float:
            config = replace(tutorials, hidden=(128,) * depth, batch_size=30 + turn, steps=1)  # never compiled before
            begun = time.perf_counter()
            run(config, tutorial.HYPERS, dataset=images, devices=1)
            return time.perf_counter() - begun

        return seconds

    return {
        **{name: chunk(*watch) for name, watch in WATCHES.items()},
        "matmul": _matrix_products(tutorials, steps),
        "lanes": chunk(("norms",), "every(1)", LANES, None),
        "iris": iris_runs(IRIS_LANES),
        "iris_64": iris_runs(64),
        "iris_one": iris_runs(1),
        "deep": first_step(14 if options.smoke else 240),
        "shallow": first_step(2 if options.smoke else 8),
    }


def _images(n: int) -> Any:
    """Random bytes of MNIST's shape."""
    from vgjax import Dataset

    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (n + 1000, 784), dtype=np.uint8)
    labels = rng.integers(0, 10, n + 1000).astype(np.int32)
    return Dataset("synthetic", inputs[:n], labels[:n], inputs[n:], labels[n:], 10, (28, 28), "drawn")


def _matrix_products(config: Any, steps: int) -> Callable[[int], float]:
    """Seconds of the products of a chunk alone: forward, and backward to weights and to inputs."""
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


def _peers(options: Options) -> dict[str, Callable[[int], float]]:
    """What PyTorch and Keras need for the same work, as far as they are installed."""
    import experiments.keras_notebook as notebook
    import experiments.mxnet_mnist as tutorial
    from experiments import peers
    from vgjax.data.catalogue import load

    have = peers.installed()
    steps, few = options.steps, max(2, options.steps // 10)  # histograms take long
    config = replace(tutorial.CLEAN, **tutorial.GRID["uniform, relu"], epochs=1)
    images = _images(steps * config.batch_size)
    pixels = (images.train_inputs / np.float32(256)).astype(np.float32), images.train_labels
    iris = replace(notebook.IRIS, epochs=1 if options.smoke else 30)
    flowers = load("iris_petal")
    petals = flowers.train_inputs, flowers.train_labels
    contestants: dict[str, Callable[[int], float]] = {}
    if "torch" in have:
        short = replace(config, steps=few)
        contestants |= {
            "torch": lambda turn: peers.torch_seconds(config, 0.1, *pixels),
            "torch_norms": lambda turn: peers.torch_seconds(config, 0.1, *pixels, "norms"),
            "torch_histograms": lambda turn: steps / few * peers.torch_seconds(short, 0.1, *pixels, "histograms"),
            "torch_iris": lambda turn: peers.torch_seconds(iris, 1e-3, *petals),
        }
    if "keras" in have:
        contestants |= {
            "keras": lambda turn: peers.keras_seconds(config, 0.1, *pixels),
            "keras_tensorboard": lambda turn: peers.keras_seconds(config, 0.1, *pixels, "tensorboard"),
            "keras_iris": lambda turn: peers.keras_seconds(iris, 1e-3, *petals, cold=True),
        }
    return contestants


def facts(seconds: dict[str, list[float]], n_steps: int) -> dict[str, Any]:
    """Numbers that are no ratios: times a step, start-up, and what leaves the device at an instrumented step."""
    import experiments.mxnet_mnist as tutorial
    from vgjax import run

    images = _images(2 * tutorial.CLEAN.batch_size)
    config = replace(tutorial.CLEAN, dataset="synthetic", steps=1)
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
        name: 1e3 * float(np.median(seconds[name])) / n_steps
        for name in (*WATCHES, "matmul", "torch")
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
    """Measure, write, and print the table."""
    options = tyro.cli(Options, prog="python -m experiments.benchmark")
    import joblib

    # lanes share the cores, as in the experiments
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(joblib.cpu_count()))
    if options.repeats < 1:
        print(f"error: repeats {options.repeats} is not allowed; allowed: whole numbers from 1", file=sys.stderr)
        return 2
    from experiments import peers
    from vgjax.environment import environment

    versions = peers.installed()  # before anything else imports TensorFlow: it is to run as its users have it
    begun = time.monotonic()
    seconds = measure(options)
    rows = rows_of(seconds)
    made = environment() | {"peers": versions, "load": os.getloadavg(), "processor": _processor()}
    made |= {
        "seconds": round(time.monotonic() - begun, 1),
        "options": dataclasses.asdict(options) | {"out": options.out.name},
    }
    content = {
        "rows": rows,
        "facts": facts(seconds, options.steps),
        "seconds": seconds,
        "environment": made,
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
