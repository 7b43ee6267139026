"""Watched optimizers in three strangers' loops, against float64 NumPy; and what a state has to survive."""

from __future__ import annotations

import functools
import importlib.util
import operator
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from test_stats import expected, numpy_counts

import vgjax
from vgjax import stats, watching
from vgjax.families import FAMILIES
from vgjax.layers import weight_groups

EXAMPLES = Path(__file__).parent.parent / "experiments" / "examples"
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


RNG = np.random.default_rng(0)
PARAMETERS = {
    f"dense_{i}": {"kernel": jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32), "bias": jnp.zeros(4)} for i in range(3)
}


def gradients(step, tree=PARAMETERS):
    """Other numbers at every step."""
    return jax.tree.map(lambda x: jnp.cos(x * (3 + step)).astype(x.dtype), tree)


def after(tx, steps, params=PARAMETERS, give=gradients):
    state = tx.init(params)
    for step in range(steps):
        _, state = tx.update(give(step), state, params)
    return state


def test_tables_agree():
    """A watched family gives what the same family gives in a run; all of them come with a clip, fewer without."""
    assert set(watching.FROM_OUTSIDE) <= FAMILIES.keys()
    names = [name for family in watching.FROM_OUTSIDE for name in FAMILIES[family].gives]
    clip = optax.clip_by_global_norm(1.0)
    every = vgjax.watched(after(vgjax.watch(optax.adam(1e-3), clip, record="all"), 1))
    assert {*every.statistics} == {*names} and len(every.layers) == 3
    fewer = vgjax.watched(after(vgjax.watch(optax.adam(1e-3), record="all"), 1))
    assert {*fewer.statistics} == {name for name in names if not name.startswith("clipped_")}
    for record in (every, fewer):
        for name, values in record.statistics.items():
            assert values.shape[0] == 3 and np.isfinite(values).all(), name


def test_clip_and_optimizer_are_a_chain():
    """Watched apart, they move as `optax.chain` of them, and the clipped gradient is the one in between."""
    clip, move = optax.clip_by_global_norm(0.1), optax.sgd(0.5, momentum=0.9)
    watched, plain = vgjax.watch(move, clip, record=("points",)), optax.chain(clip, move)
    state, plain_state = watched.init(PARAMETERS), plain.init(PARAMETERS)
    for step in range(3):
        updates, state = jax.jit(watched.update)(gradients(step), state)
        same, plain_state = jax.jit(plain.update)(gradients(step), plain_state)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), updates, same))
    record = vgjax.watched(state).statistics
    clipped = clip.update(gradients(2), clip.init(PARAMETERS))[0]
    np.testing.assert_allclose(
        record["clipped_norm"], [np.linalg.norm(np.asarray(clipped[n]["kernel"], np.float64)) for n in PARAMETERS], 1e-6
    )
    np.testing.assert_allclose(record["clipped_cosine"], 1, 1e-6)


def test_snapshot_takes_the_same_functions():
    """One point of a chain, Optax's own way."""
    tx = optax.chain(optax.snapshot("raw", stats.norm_statistics), optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    have = optax.tree.get(after(tx, 3), "raw")
    want = vgjax.watched(after(vgjax.watch(optax.adam(1e-3), optax.clip_by_global_norm(1.0)), 3))
    for name, values in want.statistics.items():
        np.testing.assert_allclose(have[name], values, 1e-6)


@pytest.mark.parametrize("every", [1, 3, 10])
def test_every(every):
    """The record is of the last measured step and says so; before the first it is NaN."""
    tx = vgjax.watch(optax.sgd(0.1), every=every)
    start = vgjax.watched(tx.init(PARAMETERS))
    assert start.step == -1 and all(np.isnan(values).all() for values in start.statistics.values())
    for steps in (1, 2, 4, 8):
        record = vgjax.watched(after(tx, steps))
        last = (steps - 1) // every * every
        assert record.step == last
        want = [np.linalg.norm(np.asarray(gradients(last)[n]["kernel"], np.float64)) for n in record.layers]
        np.testing.assert_allclose(record.statistics["gradient_norm"], want, 1e-6)


def test_steps_in_between_measure_nothing():
    """The measuring stands inside a branch, which is taken on measured steps alone."""
    tx = vgjax.watch(optax.sgd(0.1), every=10, record="gradient_histogram")
    state = tx.init(PARAMETERS)
    jaxpr = jax.make_jaxpr(tx.update)(PARAMETERS, state)
    assert [eqn.primitive.name for eqn in jaxpr.eqns if "scatter" in str(eqn.primitive)] == []
    inside = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "cond"]
    assert any("scatter" in str(eqn.params["branches"]) for eqn in inside)


def test_jit_scan_and_vmap():
    """One structure from init on; lanes give what each gives by itself."""
    tx = vgjax.watch(optax.adam(1e-2), optax.clip(0.5), every=2, record="all", stacked="")
    want = after(tx, 5)

    def whole(scale):
        params = jax.tree.map(lambda x: x * scale, PARAMETERS)

        def body(state, step):
            return tx.update(gradients(step), state, params)[1], None

        return jax.lax.scan(body, tx.init(params), jnp.arange(5))[0]

    alone = jax.jit(whole)(1.0)
    assert jax.tree.structure(alone) == jax.tree.structure(want)
    lanes = jax.jit(jax.vmap(whole))(jnp.array([1.0, 2.0]))
    record = vgjax.watched(lanes)
    assert record.step.tolist() == [4, 4] and record.layers == tuple(PARAMETERS)
    for name, values in vgjax.watched(want).statistics.items():
        tolerance = {"rtol": 1e-5, "atol": 1 if name.endswith("histogram") else 0}
        np.testing.assert_allclose(vgjax.watched(alone).statistics[name], values, **tolerance)
        np.testing.assert_allclose(record.statistics[name][0], values, **tolerance)
    with pytest.raises(ValueError, match=r"2 lanes; take one: jax\.tree\.map"):
        vgjax.scalars(lanes)
    one = jax.tree.map(lambda x: x[1], lanes)
    want_norm = 2 * np.linalg.norm(np.asarray(PARAMETERS["dense_0"]["kernel"], np.float64))
    assert vgjax.scalars(one)["weight/norm/dense_0"] == pytest.approx(want_norm, rel=1e-6)


def test_stacked_is_unstacked():
    """Three layers in one array give what they give one by one, under `blocks/kernel[i]`'s module's name."""
    stack = {"blocks": {"dense": jax.tree.map(lambda *x: jnp.stack(x), *PARAMETERS.values())}}
    record = ("norms", "spread", "weights", "points", "gradient_histogram")
    single = vgjax.watched(after(vgjax.watch(optax.adam(1e-2), record=record), 3))
    tx = vgjax.watch(optax.adam(1e-2), record=record, stacked="blocks")
    stacked = vgjax.watched(after(tx, 3, stack, lambda step: gradients(step, stack)))
    assert stacked.layers == ("blocks/dense[0]", "blocks/dense[1]", "blocks/dense[2]")
    for name, values in single.statistics.items():
        np.testing.assert_allclose(stacked.statistics[name], values, 1e-6)


@pytest.mark.parametrize("value, log10", [(0.0, -np.inf), (np.nan, np.nan)])
def test_zero_and_nan_gradients(value, log10):
    """A vanished gradient is −Inf in log₁₀, a broken one NaN; the histogram has a bin for both."""

    def give(step):
        return jax.tree.map(lambda x: jnp.full_like(x, value), PARAMETERS)

    state = after(vgjax.watch(optax.sgd(0.1), record=("norms", "gradient_histogram")), 2, give=give)
    record = vgjax.watched(state).statistics
    np.testing.assert_array_equal(record["gradient_norm"], [value] * 3)
    np.testing.assert_array_equal(record["gradient_log10_rms"], np.float32([log10] * 3))
    bin_ = stats.ZERO_BIN if value == 0 else stats.NAN_BIN
    assert record["gradient_histogram"][:, bin_].tolist() == [16] * 3


def test_missing_params():
    """Statistics of the weights need them, the others do not."""
    for family in ("weights", "weight_histogram"):
        tx = vgjax.watch(optax.sgd(0.1), record=family)
        with pytest.raises(ValueError, match=f"^{family} need the parameters: update"):
            tx.update(gradients(0), tx.init(PARAMETERS))
    tx = vgjax.watch(optax.sgd(0.1), record=("norms", "spread", "points", "update_histogram"))
    _, state = tx.update(gradients(0), tx.init(PARAMETERS))
    assert vgjax.watched(state).step == 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: vgjax.watch(optax.sgd(0.1), record="norm"), "unknown family 'norm' in record; did you mean 'norms'"),
        (lambda: vgjax.watch(optax.sgd(0.1), record=("norms", "activations")), "unknown family 'activations' in rec"),
        (lambda: vgjax.watch(optax.sgd(0.1), every=0), r"every\(0\) is not allowed; allowed: whole numbers from 1"),
        (lambda: vgjax.watch(optax.sgd(0.1)).init({"bias": jnp.zeros(3)}), "no layers to watch"),
        (
            lambda: vgjax.watch(optax.sgd(0.1), stacked="bloks").init({"blocks": {"up": jnp.zeros((3, 4, 4))}}),
            "stacked 'bloks' fits no layer; did you mean 'blocks'",
        ),
        (lambda: vgjax.watched(optax.sgd(0.1).init(PARAMETERS)), "0 watched optimizers in this state"),
        (lambda: vgjax.watched([vgjax.watch(optax.sgd(0.1)).init(PARAMETERS)] * 2), "2 watched optimizers"),
    ],
)
def test_mistakes(make, message):
    """One clear line each."""
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrap", ["chain", "multi_steps", "masked", "inject", "finite", "multi"])
def test_inside_other_transformations(wrap):
    """Wherever Optax puts a state, it is found; arguments beyond Optax's three come through."""
    inner = vgjax.watch(optax.adam(1e-2))
    tx = {
        "chain": lambda: optax.chain(optax.zero_nans(), inner),
        "multi_steps": lambda: optax.MultiSteps(inner, 2),
        "masked": lambda: optax.masked(inner, {"dense_0": False, "dense_1": True, "dense_2": True}),
        "inject": lambda: optax.inject_hyperparams(lambda rate: vgjax.watch(optax.adam(rate)))(rate=0.1),
        "finite": lambda: optax.apply_if_finite(inner, 2),
        "multi": lambda: optax.multi_transform(
            {"seen": inner, "not": optax.sgd(0.1)}, {"dense_0": "not", "dense_1": "seen", "dense_2": "seen"}
        ),
    }[wrap]()
    record = vgjax.watched(after(tx, 4))
    assert record.layers == (("dense_1", "dense_2") if wrap in ("masked", "multi") else tuple(PARAMETERS))
    assert np.isfinite(record.statistics["gradient_norm"]).all()


def test_extra_arguments_reach_the_optimizer():
    """As a line search or a plateau schedule wants them."""
    tx = vgjax.watch(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()))
    _, state = tx.update(gradients(0), tx.init(PARAMETERS), PARAMETERS, value=jnp.float32(1.0))
    assert optax.tree.get(state, "gradient_norm").shape == (3,)


def test_state_survives_files_and_maps(tmp_path):
    """Orbax, msgpack, a mapping over parameters, donation."""
    tx = vgjax.watch(optax.adam(1e-2), record=("norms", "gradient_histogram"))
    state, empty = after(tx, 2), tx.init(PARAMETERS)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", state)
        checkpointer.wait_until_finished()
        loaded = checkpointer.restore(tmp_path / "orbax", empty)
    unpacked = flax.serialization.from_bytes(empty, flax.serialization.to_bytes(state))
    mapped = optax.tree_utils.tree_map_params(tx, lambda x: x * 2, state)
    np.testing.assert_array_equal(
        mapped.optimizer[0].mu["dense_0"]["kernel"], 2 * state.optimizer[0].mu["dense_0"]["kernel"]
    )
    for other in (loaded, unpacked, mapped):
        assert vgjax.scalars(other) == vgjax.scalars(state)
    want = vgjax.scalars(state)
    donated = jax.jit(lambda state: tx.update(gradients(1), state)[1], donate_argnums=0)(state)
    assert vgjax.scalars(donated) == pytest.approx(want) and vgjax.watched(donated).step == 2


def test_scalars_and_histograms_go_to_a_writer(tmp_path):
    """CLU takes both as they are, NaN included; TensorBoard reads the counts back."""
    from clu import metric_writers
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    state = after(vgjax.watch(optax.sgd(0.1), record="all"), 1, give=lambda step: gradients(step))
    writer = metric_writers.SummaryWriter(str(tmp_path))
    writer.write_scalars(0, vgjax.scalars(state) | {"nan": float("nan")})
    writer.write_summaries(0, *vgjax.histograms(state))
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()["tensors"]
    assert {"gradient/histogram/dense_0", "weight/histogram/dense_1", "update/histogram/dense_2"} <= set(tags)
    assert {"gradient/norm/dense_0", "update/ratio/dense_2"} <= set(tags)
    import tensorflow as tf

    back = tf.make_ndarray(events.Tensors("gradient/histogram/dense_0")[0].tensor_proto)
    assert back[:, 2].sum() == 16


def test_weights_of_other_libraries():
    """What is a weight and what it is called: boxes, biases of two dimensions, keys, numbers, functions."""

    def names(tree, **options):
        return [name for group in weight_groups(tree, **options) for name in group.names]

    attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    assert names(nnx.state(attention, nnx.Param)) == names(attention) == ["key", "out", "query", "value"]
    boxed = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "m")))
    assert names({"a": boxed.init(jax.random.key(0), jnp.ones((1, 2)))["params"]}) == ["a"]
    conv = eqx.nn.Conv2d(1, 2, 3, key=jax.random.key(0))  # its bias is [2, 1, 1]
    assert names({"conv": conv, "f": jax.nn.relu, "x": 1.5, "key": jax.random.split(jax.random.key(0), (2, 2))}) == [
        "conv"
    ]
    assert names({"a": jnp.zeros((2, 2), int), "b": {"value": jnp.zeros((2, 2)), "query": jnp.zeros((2, 2))}}) == [
        "b/query",
        "b/value",
    ]

    class Three(eqx.Module):
        query: jax.Array
        value: jax.Array

    assert names({"a": Three(jnp.zeros((2, 2)), jnp.zeros((2, 2)))}) == ["a/query", "a/value"]
    blocks = eqx.filter_vmap(lambda key: eqx.nn.MLP(2, 2, 3, 1, key=key))(jax.random.split(jax.random.key(0), 2))
    assert names({"blocks": blocks}, stacked="blocks") == [f"blocks/layers/{i}[{j}]" for i in (0, 1) for j in (0, 1)]

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.scan(
                nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3, metadata_params={}
            )
            return layer(name="blocks")(x, None)[0]

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4, name="dense")(nn.LayerNorm(name="norm")(x)), None

    params = Scanned().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    assert names(params, stacked="blocks") == [f"blocks/dense[{i}]" for i in range(3)]
