"""Watched optimizers in three strangers' loops, against float64 NumPy."""

from __future__ import annotations

import functools
import importlib.util
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy_statistics import expected, numpy_counts
from paths import TOP

import vgjax

pytestmark = pytest.mark.optimised
EXAMPLES = TOP / "experiments" / "examples"
MARK = "  # vgjax"


@pytest.fixture(autouse=True)
def as_jax_comes():
    """A stranger's loop, and Optax itself, mix types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def executed(source, folder, name):
    """A script's names after it ran."""
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pure(*trees):
    return tuple(nnx.as_pure(tree) for tree in trees)


def once_more_cnn(ns):
    """One more step of the example's own; gradients and updates from jax.grad and plain Optax, by way of float64."""
    before, batch = ns.state, (ns.images[:64], ns.labels[:64])
    grads = jax.grad(ns.loss_fn)(before.params, *batch)
    length = np.sqrt(sum(np.sum(np.square(np.asarray(g, np.float64))) for g in jax.tree.leaves(grads)))
    assert length > 0  # Optax clips where ‖g‖ > 0.5
    clipped = grads if length < 0.5 else jax.tree.map(lambda g: np.asarray(g, np.float64) / length * 0.5, grads)
    low = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), clipped)
    updates, _ = optax.adam(1e-3).update(low, before.opt_state.optimizer, before.params)
    after, _ = ns.train_step(before, *batch)
    return after.opt_state, before.params, grads, clipped, updates


def once_more_nnx(ns):
    before = nnx.state(ns.model, nnx.Param)
    grads = nnx.grad(ns.loss_fn)(ns.model, ns.tokens)
    params, grads, state = jax.tree.map(jnp.copy, pure(before, grads, ns.optimizer.opt_state.optimizer))
    updates, _ = optax.adamw(1e-3).update(grads, state, params)
    ns.train_step(ns.model, ns.optimizer, ns.tokens)
    return ns.optimizer.opt_state, params, grads, grads, updates


def once_more_equinox(ns):
    params, batch = eqx.filter(ns.model, eqx.is_array), (ns.inputs[:64], ns.labels[:64])
    _, grads = ns.loss_fn(ns.model, *batch)
    updates, _ = optax.sgd(0.1, momentum=0.9).update(grads, ns.opt_state.optimizer)
    _, opt_state, _ = ns.train_step(ns.model, ns.opt_state, *batch)
    return opt_state, params, grads, grads, updates


BLOCK = [*(f"attention/{part}" for part in ("key", "out", "query", "value")), "down", "up"]
LAYERS = {  # name → how to get at its weight, in the order in which they are recorded
    "flax_cnn": {
        name: lambda tree, name=name: tree[name]["kernel"] for name in ("Conv_0", "Conv_1", "Conv_2", "Dense_0")
    },
    "nnx_transformer": {
        **{
            f"blocks/{path}[{i}]": lambda tree, path=path, i=i: functools.reduce(
                operator.getitem, [*path.split("/"), "kernel"], tree["blocks"]
            )[i]
            for path in BLOCK
            for i in range(4)
        },
        "embed": lambda tree: tree["embed"]["embedding"],
        "head": lambda tree: tree["head"]["kernel"],
    },
    "equinox_mlp": {f"layers/{i}": lambda tree, i=i: tree.layers[i].weight for i in range(6)},
}
ONCE_MORE = {"flax_cnn": once_more_cnn, "nnx_transformer": once_more_nnx, "equinox_mlp": once_more_equinox}
PARAMS = {
    "flax_cnn": lambda ns: ns.state.params,
    "nnx_transformer": lambda ns: nnx.as_pure(nnx.state(ns.model, nnx.Param)),
    "equinox_mlp": lambda ns: eqx.filter(ns.model, eqx.is_array),
}


@pytest.fixture(scope="module", params=LAYERS)
def example(request, tmp_path_factory):
    """An example as it stands, run to its end: (its name, its source, its names, where it ran)."""
    folder = tmp_path_factory.mktemp(request.param)
    source = (EXAMPLES / f"{request.param}.py").read_text()
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(folder)
        yield request.param, source, executed(source, folder, request.param), folder


def numpy_statistics(w, g, c, dw):
    """Every statistic of one layer in float64, from the arrays of the three points."""
    w, c64, dw = (np.asarray(x, np.float64) for x in (w, c, dw))
    g64 = np.asarray(g, np.float64)

    def cosine(a, b):
        return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)

    return expected(np.asarray(g)) | {
        "weight_norm": np.linalg.norm(w),
        "update_ratio": np.linalg.norm(dw) / np.linalg.norm(w),
        "update_norm": np.linalg.norm(dw),
        "update_cosine": cosine(-g64, dw),
        "clipped_norm": np.linalg.norm(c64),
        "clipped_cosine": cosine(g64, c64),
        "clipped_fraction": np.mean(g64 != c64),
    }


def test_examples_give_what_numpy_computes(example):
    """Names of the layers, and every statistic of one more step, from gradients by jax.grad."""
    name, _, ns, _ = example
    opt_state, *trees = ONCE_MORE[name](ns)
    record = vgjax.watched(opt_state)
    assert record.step % 10 == 0 and record.step > 0
    assert record.layers == tuple(LAYERS[name])
    for i, get in enumerate(LAYERS[name].values()):
        want = numpy_statistics(*(np.ravel(get(tree)) for tree in trees))
        for statistic, values in record.statistics.items():
            if statistic.endswith("histogram"):
                point = {"weight": 0, "gradient": 1, "update": 3}[statistic.partition("_")[0]]
                counts = numpy_counts(np.asarray(get(trees[point])))
                assert np.abs(values[i] - counts).sum() <= 0.02 * counts.sum(), statistic  # two compilations of grad
                assert values[i].sum() == counts.sum()
            elif statistic == "gradient_mean":  # the last layer's is zero but for rounding
                assert abs(values[i] - want[statistic]) <= 1e-5 * want["gradient_std"]
            else:
                assert values[i] == pytest.approx(want[statistic], rel=1e-5), (statistic, i)


def test_three_lines_are_added_and_nothing_changes(example, tmp_path, monkeypatch):
    """Without them the script does not know the package, and ends at the same parameters to the last bit."""
    name, source, _, _ = example
    monkeypatch.chdir(tmp_path)
    lines = source.splitlines()
    plain = [line for line in lines if not line.endswith(MARK)]
    assert len(lines) == len(plain) + 3 and len(lines) < 70
    assert not any("vgjax" in line for line in plain[plain.index("import jax") :])
    fresh = executed(source, tmp_path, f"{name}_again")
    without = executed("\n".join(plain), tmp_path, f"{name}_plain")
    for a, b in zip(jax.tree.leaves(PARAMS[name](fresh)), jax.tree.leaves(PARAMS[name](without)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_cnn_wrote_events(tmp_path, example):
    """Each scalar under its layer's name."""
    name, _, _, folder = example
    if name != "flax_cnn":
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "cnn"))
    events.Reload()
    found = events.Tags()["tensors"]
    assert {"gradient/rms/Conv_0", "clipped/fraction/Dense_0", "update/ratio/Conv_2", "loss"} <= set(found)
