"""Watched optimizers as Optax uses them: inside others, in files, under jit, scan and vmap."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from engine import COMPILED
from flax import nnx

import vgjax
from vgjax.network.layer_names import weight_groups
from vgjax.statistics import histograms, weights
from vgjax.statistics.families import statistics_of
from vgjax.watching import optimizer

pytestmark = pytest.mark.optimised


@pytest.fixture(autouse=True)
def as_jax_comes():
    """A stranger's loop, and Optax itself, mix types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


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


@pytest.mark.slow
def test_tables_agree():
    """A watched family gives what the same family gives in a run; all of them come with a clip, fewer without."""
    names = [one.name for one in statistics_of(optimizer.watchable_families())]
    clip = optax.clip_by_global_norm(1.0)
    every = vgjax.watched(after(vgjax.watch(optax.adam(1e-3), clip, record="all"), 1))
    assert {*every.statistics} == {*names} and len(every.layers) == 3
    fewer = vgjax.watched(after(vgjax.watch(optax.adam(1e-3), record="all"), 1))
    assert {*fewer.statistics} == {name for name in names if not name.startswith("clipped_")}
    for record in (every, fewer):
        for name, values in record.statistics.items():
            assert values.shape[0] == 3 and np.isfinite(values).all(), name


@pytest.mark.slow
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
    tx = optax.chain(optax.snapshot("raw", weights.norm_statistics), optax.clip_by_global_norm(1.0), optax.adam(1e-3))
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


@pytest.mark.parametrize("every", [1, 2])
def test_a_loop_that_is_not_compiled_compiles_nothing_twice(every):
    """Statistics and watched steps have branches, which JAX compiles at every call where no `jit` surrounds them."""
    tx = vgjax.watch(optax.adam(1e-3), optax.clip_by_global_norm(1.0), every=every, record="all")
    state = after(tx, 3)
    groups = weight_groups({"small": {"kernel": jnp.ones((4, 4))}, "large": {"kernel": jnp.ones((400, 400))}})
    histograms.histograms(groups)
    before = len(COMPILED)
    for step in range(3, 7):
        _, state = tx.update(gradients(step), state, PARAMETERS)
        histograms.histograms(groups)
        weights.norm_statistics(gradients(step))
    assert vgjax.watched(state).step == 6
    assert before and len(COMPILED) == before


@pytest.mark.slow
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


@pytest.mark.slow
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
    bin_ = histograms.ZERO_BIN if value == 0 else histograms.NAN_BIN
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
        (
            lambda: vgjax.watch(optax.sgd(0.1), every=0),
            "every=0 is not allowed; allowed: whole numbers from 1 to 2147483647",
        ),
        (lambda: vgjax.watch(optax.sgd(0.1)).init({"bias": jnp.zeros(3)}), "no layers to watch"),
        (
            lambda: vgjax.watch(optax.sgd(0.1), stacked="bloks").init({"blocks": {"up": jnp.zeros((3, 4, 4))}}),
            "stacked 'bloks' fits no layer; did you mean 'blocks'",
        ),
        (lambda: vgjax.watch(optax.sgd(0.1), every=1.5), "every=1.5 is not allowed"),
        (lambda: vgjax.watch(optax.sgd(0.1), every=True), "every=True is not allowed"),
        (lambda: vgjax.watch(optax.sgd(0.1), every=10**10), "every=10000000000 is not allowed"),
        (lambda: vgjax.watch(optax.sgd(0.1), record=None), "record=None, stacked='' are not allowed"),
        (lambda: vgjax.watch(optax.sgd(0.1), stacked=["a"]), "stacked=.'a'. are not allowed; allowed: names, and one"),
        (lambda: vgjax.watch(optax.adam), "cannot be watched; allowed: an Optax transformation, as optax.adam"),
        (lambda: vgjax.watch(optax.sgd(0.1), 10), "10 cannot be watched; allowed: an Optax transformation"),
        (
            lambda: after(watched_norms(), 1, give=lambda step: PARAMETERS | {"dense_1": None}),
            "gradients and parameters have",
        ),
        (lambda: watched_norms().update([], watched_norms().init(PARAMETERS)), "0 layers are not allowed; allowed: 3"),
        (lambda: vgjax.watched(optax.sgd(0.1).init(PARAMETERS)), "0 watched optimizers in this state"),
        (lambda: vgjax.watched([vgjax.watch(optax.sgd(0.1)).init(PARAMETERS)] * 2), "2 watched optimizers"),
    ],
)
def test_mistakes(make, message):
    """One clear line each."""
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.slow
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


def watched_norms():
    return vgjax.watch(optax.sgd(0.1), every=np.int64(2))


def test_nothing_is_recorded():
    """Of no family at all: the optimizer itself, and the number of the step."""
    state = after(vgjax.watch(optax.sgd(0.1), record=()), 2)
    assert vgjax.scalars(state) == {} and vgjax.watched(state).step == 1


def test_one_array_alone():
    """Softmax regression has one weight matrix and no name for it."""
    weights = jnp.ones((3, 2))
    state = after(vgjax.watch(optax.sgd(0.1)), 1, weights, lambda step: weights)
    assert vgjax.scalars(state)["gradient/norm/weights"] == pytest.approx(np.sqrt(6))


@pytest.mark.parametrize("wrap", ["lookahead", "sam"])
def test_wrappers_that_add_up_old_and_new_states(wrap):
    """What is nothing before the first update is 0 in the state, and NaN to who reads it."""
    inside = vgjax.watch(optax.sgd(0.1), record=("norms", "points"))
    if wrap == "sam":
        tx = optax.contrib.sam(inside, optax.chain(optax.contrib.normalize(), optax.sgd(0.05)))
    else:
        tx = optax.lookahead(inside, sync_period=4, slow_step_size=0.5, reset_state=True)
    params = optax.LookaheadParams.init_synced(PARAMETERS) if wrap == "lookahead" else PARAMETERS
    state = tx.init(params)
    assert all(np.isnan(values).all() for values in vgjax.watched(state).statistics.values())
    for step in range(2):
        updates, state = tx.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    found = vgjax.watched(state).statistics
    expected = [np.linalg.norm(layer["kernel"]) for layer in gradients(1).values()]
    np.testing.assert_allclose(found["gradient_norm"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["update_cosine"], 1, rtol=1e-6)


@pytest.mark.slow
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

    assert names({"net": {"head": {"value": jnp.zeros((2, 2))}, "trunk": {"kernel": jnp.zeros((2, 2))}}}) == [
        "net/head",
        "net/trunk",
    ]
    assert names({"a": jnp.zeros((0, 3)), "b²": jnp.zeros((2, 3))}) == ["b²"]
    with pytest.raises(ValueError, match="two layers are called 'a/b'"):
        names({"a/b": {"w": jnp.zeros((2, 2))}, "a": {"b": {"w": jnp.zeros((2, 2))}}})
    stacks = {"blocks": {"d": {"kernel": jnp.zeros((2, 4, 4)), "bias": jnp.zeros((2, 4))}}}
    for pattern in ("blocks", "blocks/d", "blocks/d/kernel", "*/kernel", "block?"):
        assert names(stacks, stacked=pattern) == ["blocks/d[0]", "blocks/d[1]"]

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
