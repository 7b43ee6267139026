"""The engine: chunks, lanes and devices do what a plain loop over NumPy arrays would."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import small
from engine import ALONE, COMPILED, SETTINGS, assert_same_history, batch_of, changed, pieces

from vgjax import run
from vgjax.activations import steepest_slope
from vgjax.config import Hypers
from vgjax.data import batches
from vgjax.names import text_of
from vgjax.network.model import initial_variables
from vgjax.settings import Settings, settings_from
from vgjax.training import parallel, programs
from vgjax.training.chunk import orders_of, run_chunk
from vgjax.training.history import load
from vgjax.training.step import Plan, fresh_state, initial_state, purpose_key, record, train_step

pytestmark = pytest.mark.optimised


@pytest.fixture(scope="module")
def eight_lanes():
    """Two settings by four seeds."""
    return run(small.CONFIG, SETTINGS, 4, dataset=small.dataset())


def test_history_has_every_lane_and_step(eight_lanes):
    """Lanes are settings × seeds, with their numbers as coordinates; steps, epochs and evaluations as planned."""
    history = eight_lanes.history
    assert history["seed"].values.tolist() == [0, 1, 2, 3] * 2
    assert history["learning_rate"].values.tolist() == [0.1] * 4 + [0.05] * 4
    assert history["step"].values.tolist() == [0, 3, 6, 8] and history["evaluated_at"].values.tolist() == [3, 6, 9]
    assert history["epoch"].values.tolist() == [0, 1, 2, 8 / 3]
    assert history["layer"].values.tolist() == ["layer_1", "layer_2", "layer_3"]
    assert history["fan_in"].values.tolist() == [5, 8, 6] and history["fan_out"].values.tolist() == [8, 6, 3]
    assert np.array_equal(history["gradient_histogram"].sum("bin")[0, 0], [40, 48, 18])
    assert len(np.unique(history["loss"].values[:, 0])) == 4 and len(np.unique(history["loss"].values[:, -1])) == 8


def simulate(config, hypers, params, averages, total, schedule):
    """The run as a plain loop in float64: momentum SGD, value clipping, l2 decay, data in the file's order."""
    data = small.dataset()
    x, y = data.train_inputs.astype(np.float64), data.train_labels
    per_epoch = -(-len(y) // config.batch_size) if config.last_batch == "keep" else len(y) // config.batch_size
    kind = {"activation": config.activation, "norm": config.norm}
    momentum = jax.tree.map(np.zeros_like, params)
    steps, evaluations, meter = {}, {}, []
    for t in range(total):
        start = t % per_epoch * config.batch_size
        rows = slice(start, min(start + config.batch_size, len(y)))
        n = len(y[rows])
        loss, gradients, share, moments = reference.loss_and_gradients(
            params, x[rows], y[rows], reduction=config.reduction, **kind
        )
        loss = loss / n if config.reduction == "sum" else loss
        meter.append((loss * n, share * n, n))
        factor = config.batch_size if config.reduction == "sum" else 1
        clip = hypers.clip_threshold if config.clip == "value" else np.inf
        total_g = jax.tree.map(
            lambda g, w, f=factor, c=clip: np.clip(g / f, -c, c) + hypers.weight_decay * w * (w.ndim == 2),
            gradients,
            params,
        )
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, total_g)
        updates = jax.tree.map(lambda m, t=t: -hypers.learning_rate * schedule(t) * m, momentum)
        steps[t] = {"loss": loss, "accuracy": share}
        for name, pick in (
            ("gradient_norm", lambda n, g=gradients: np.linalg.norm(g[n]["kernel"])),
            ("gradient_std", lambda n, g=gradients: g[n]["kernel"].std()),
            ("gradient_max", lambda n, g=gradients: np.abs(g[n]["kernel"]).max()),
            ("gradient_log10_rms", lambda n, g=gradients: np.log10(np.sqrt(np.mean(g[n]["kernel"] ** 2)))),
            ("weight_norm", lambda n, p=params: np.linalg.norm(p[n]["kernel"])),
            (
                "update_ratio",
                lambda n, u=updates, p=params: np.linalg.norm(u[n]["kernel"]) / np.linalg.norm(p[n]["kernel"]),
            ),
        ):
            steps[t][name] = [pick(f"layer_{i}") for i in range(1, len(config.hidden) + 2)]
        params = jax.tree.map(np.add, params, updates)
        for name, moment in moments.items():
            averages[name] = {k: 0.99 * averages[name][k] + 0.01 * moment[k] for k in moment}
        if (t + 1) % per_epoch == 0 or t + 1 == total:
            sums = np.sum(meter, axis=0)
            evaluations[t + 1] = {"train_loss": sums[0] / sums[2], "train_accuracy": sums[1] / sums[2]}
            evaluations[t + 1] |= evaluated(config, params, averages)
            meter = []
    return steps, evaluations, params


def evaluated(config, params, averages):
    """Loss and accuracy over the test split, batch norm by its running averages, folded into the dense layers."""
    data, folded = small.dataset(), {}
    for name, layer in params.items():
        norm = name.replace("layer", "norm")
        if norm in averages and name != norm:
            scale = params[norm]["scale"] / np.sqrt(averages[norm]["var"] + config.norm_epsilon)
            bias = (layer["bias"] - averages[norm]["mean"]) * scale + params[norm]["bias"]
            folded[name] = {"kernel": layer["kernel"] * scale, "bias": bias}
        elif name.startswith("layer"):
            folded[name] = layer
    x = data.test_inputs.astype(np.float64)
    loss, _, share, _ = reference.loss_and_gradients(folded, x, data.test_labels, activation=config.activation)
    return {"validation_loss": loss, "validation_accuracy": share}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "hypers", "schedule"),
    [
        (
            {
                "last_batch": "keep",
                "reduction": "sum",
                "clip": "value",
                "decay": "l2",
                "schedule": "linear",
                "steps": 10,
            },
            Hypers(0.2, weight_decay=0.01, clip_threshold=0.05),
            lambda t: 1 - t / 10,
        ),
        ({"norm": "batch", "last_batch": "keep", "clip": "none", "decay": "l2"}, Hypers(0.2), lambda t: 1.0),
    ],
    ids=["sums, clipped and decayed", "batch norm"],
)
def test_a_run_is_the_plain_loop(changes, hypers, schedule):
    """Losses, statistics, evaluations and final parameters of a whole run, incomplete batches too, in float64."""
    config = changed(shuffle="never", **changes)
    inputs = jnp.asarray(small.dataset().train_inputs)
    variables = initial_variables(config, small.CLASSES, Hypers(sigma_b=0.3), jax.random.key(5), inputs)
    result = run(config, hypers, dataset=small.dataset(), variables=jax.tree.map(lambda leaf: leaf[None], variables))
    plain = reference.as_float64(dict(variables))
    total = config.steps or 12
    steps, evaluations, params = simulate(
        config, hypers, plain["params"], plain.get("batch_stats", {}), total, schedule
    )
    history = result.history.isel(lane=0)
    assert history["step"].values.tolist() == sorted({*range(0, total, 3), total - 1})
    for r, t in enumerate(history["step"].values):
        for name, want in steps[int(t)].items():
            np.testing.assert_allclose(history[name].values[r], want, rtol=1e-4, err_msg=f"{name} at step {t}")
    assert history["evaluated_at"].values.tolist() == list(evaluations)
    for e, want in enumerate(evaluations.values()):
        for name, value in want.items():
            np.testing.assert_allclose(history[name].values[e], value, rtol=1e-4, err_msg=f"{name} after chunk {e}")
    for want, have in zip(jax.tree.leaves(params), jax.tree.leaves(result.variables["params"]), strict=True):
        np.testing.assert_allclose(have[0], want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [[7], [2, 3, 7]])
def test_a_lane_has_the_same_bits_whatever_runs_beside_it(eight_lanes, lanes):
    """Some of eight lanes by themselves: history and parameters."""
    pairs = [(SETTINGS[i // 4], i % 4) for i in lanes]
    alone = run(small.CONFIG, *map(list, zip(*pairs, strict=True)), paired=True, dataset=small.dataset())
    beside = eight_lanes.history.isel(lane=lanes)
    for name in beside.data_vars:
        np.testing.assert_array_equal(alone.history[name].values, beside[name].values, err_msg=name)
    for a, b in zip(jax.tree.leaves(alone.variables), jax.tree.leaves(eight_lanes.variables), strict=True):
        np.testing.assert_array_equal(a, b[np.array(lanes)])


def test_nothing_is_compiled_twice(eight_lanes):
    """The same run again compiles nothing; other numbers neither; another initializer its first state alone."""
    run(small.CONFIG, SETTINGS, 4, dataset=small.dataset())
    before = len(COMPILED)
    again = run(small.CONFIG, SETTINGS, 4, dataset=small.dataset())
    run(small.CONFIG, [Hypers(0.3, 0.1), Hypers(0.2)], [9, 8, 7, 6], dataset=small.dataset())
    assert before and len(COMPILED) == before
    other = run(changed(initializer="mean_field"), SETTINGS, 4, dataset=small.dataset())
    assert len(COMPILED) == before + 1
    assert_same_history(again.history, eight_lanes.history, rtol=0)
    assert not np.allclose(other.history["loss"], again.history["loss"])


@pytest.mark.slow
def test_a_new_program_is_compiled_once(eight_lanes):
    """Another activation: the same first state, and one program of steps, once its steepest slope is known."""
    steepest_slope("elu")
    before = len(COMPILED)
    run(changed(activation="elu"), SETTINGS, 4, dataset=small.dataset())
    assert len(COMPILED) == before + 1


@pytest.mark.slow
def test_what_steps_do_not_see_shares_their_program(monkeypatch):
    """Data, scaling, holdout, length, cadence and initializers: the steps are traced once; another norm: once more."""
    traced, steps_of_a_chunk = [], programs.run_chunk
    monkeypatch.setattr(programs, "run_chunk", lambda *a: traced.append(a[0]) or steps_of_a_chunk(*a))
    data = small.dataset()
    pixels = np.clip(data.train_inputs * 40 + 100, 0, 255).astype(np.uint8)
    bytes_ = {"train_inputs": pixels, "test_inputs": pixels[:20]}
    held_out = dataclasses.replace(data, **bytes_)  # 36 to train on, 20 to validate
    split = dataclasses.replace(held_out, train_inputs=pixels[20:], train_labels=data.train_labels[20:])
    programs._chunk_program.cache_clear()
    one = run(changed(holdout=20), dataset=held_out).history
    other = {"scaling": "1/256", "epochs": 9, "steps": 5, "cadence": "at(1)", "initializer": "he_normal"}
    two = run(changed(output_initializer="orthogonal", **other), seeds=[3], dataset=split).history
    assert len(traced) == programs._chunk_program.cache_info().currsize == 1
    assert one.sizes["record"] == 3 and two["step"].values.tolist() == [1] and one.sizes["evaluation"] == 3
    run(changed(norm="layer", holdout=20), dataset=held_out)
    programs._chunk_program.cache_clear()
    assert len(traced) == 2


def test_an_exploding_run_ends_in_order(eight_lanes):
    """Beside seven sound lanes one has a monstrous learning rate: its history is complete, theirs as ever."""
    settings = [Hypers(0.1), Hypers(1e38)]
    result = run(small.CONFIG, settings, 4, dataset=small.dataset())
    assert result.history["step"].values.tolist() == [0, 3, 6, 8]
    exploded = result.history.isel(lane=slice(4, 8))
    assert not np.isfinite(exploded["loss"].values[:, -1]).any()
    assert np.isfinite(exploded["loss"].values[:, 0]).all()
    assert (exploded["gradient_histogram"].sum("bin") == [40, 48, 18]).all()
    assert_same_history(result.history.isel(lane=slice(4)), eight_lanes.history.isel(lane=slice(4)), rtol=0)


@pytest.mark.slow
def test_every_epoch_of_a_chunk_has_its_own_order():
    """Which is the order of that epoch of the run, whatever chunk it is in."""
    program, shared, lane = pieces(changed(shuffle="every_epoch"))
    plan = Plan(jnp.int32(6), jnp.int32(12), jnp.array([12]), jnp.zeros(3, bool))  # from the third epoch on
    key = purpose_key(lane.key, "shuffle")
    expected = [batches.epoch_order(program.config, program.n_examples, key, jnp.int32(e)) for e in (2, 3, 4)]
    np.testing.assert_array_equal(orders_of(program, shared._replace(plan=plan), lane), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "is_finite"), [(6, True), (5, True), (3, True), (6, False)])
def test_what_a_chunk_says_of_its_epochs(stop, is_finite):
    """Two epochs of three steps, the second whole, cut short or left out, in a chunk that may have three."""
    program, shared, lane = pieces(changed(record=("norms",)))
    plan = Plan(jnp.int32(0), jnp.int32(stop), jnp.array([0, stop]), jnp.array([False, True, True]))
    state = initial_state(program, shared, lane)
    if not is_finite:
        bad = jax.tree.map(lambda w: w.at[-1].set(jnp.nan), state.variables["params"]["layer_3"])
        params = {**state.variables["params"], "layer_3": bad}
        state = fresh_state(program, shared, (lane, {**state.variables, "params": params}))
    _, records, found = jax.jit(run_chunk, static_argnums=0)(program, shared._replace(plan=plan), (lane, state))
    assert bool(found["finite"]) == is_finite and records["loss"].shape == (1,)
    was_seen = np.arange(3) < -(-stop // 3)
    assert np.isfinite(found["train_accuracy"]).tolist() == (was_seen & is_finite).tolist()
    assert np.isfinite(found["validation_loss"]).tolist() == (was_seen & is_finite & [False, True, True]).tolist()
    np.testing.assert_array_equal(found["clipped_to_zero"], np.where(was_seen, 0, np.nan))


@pytest.mark.slow
def test_an_infinite_loss_of_finite_parameters_is_told():
    """Saturated layers pass no gradient on; the last one's logits are so far apart that their losses' sum overflows."""
    program, shared, lane = pieces(changed(reduction="sum"))
    plan = Plan(jnp.int32(0), jnp.int32(1), jnp.array([1, 1]), jnp.array([False]))
    variables = initial_state(program, shared, lane).variables
    size = {"layer_1": 1e6, "layer_2": 1e6, "layer_3": 1e38}
    params = {name: jax.tree.map(lambda w, by=size[name]: w * by, leaf) for name, leaf in variables["params"].items()}
    state = fresh_state(program, shared, (lane, {**variables, "params": params}))
    after, _, evaluation = jax.jit(run_chunk, static_argnums=0)(program, shared._replace(plan=plan), (lane, state))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.variables["params"]))
    assert not np.isfinite(evaluation["train_loss"]).any()
    assert evaluation["finite"].dtype == bool and not evaluation["finite"]


@pytest.mark.slow
def test_two_devices_see_and_record_the_whole_batch():
    """Half of a masked batch on either end of a device axis: record and averages are those of the whole."""
    program, shared, lane = pieces(changed(norm="batch", last_batch="keep", record=("all",)))
    state, batch = initial_state(program, shared, lane), batch_of(program, shared, lane, 3)

    def step(where, batch):
        here = program._replace(where=where)
        after, outcome, view = train_step(here, lane, state, batch)
        return record(here, outcome, view), after.variables["batch_stats"]

    one = jax.jit(lambda batch: step(ALONE, batch))(batch)
    halves = jax.tree.map(lambda x: jnp.stack([x[::2], x[1::2]]), batch)
    split = jax.vmap(lambda batch: step(parallel.Layout(2, "batch"), batch), axis_name=parallel.AXIS)
    for (path, want), have in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(jax.jit(split)(halves)), strict=True):
        size = np.abs(np.nan_to_num(want)).max()
        for end in have:
            np.testing.assert_allclose(end, want, rtol=1e-4, atol=1e-5 * size, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_progress_and_given_variables(eight_lanes, an_epoch_a_chunk):
    """`progress` sees every chunk; a run from given variables starts there."""
    seen = []
    result = run(
        small.CONFIG,
        SETTINGS,
        4,
        dataset=small.dataset(),
        variables=eight_lanes.variables,
        progress=lambda part, total: seen.append((int(part["evaluated_at"].values[0]), total)),
    )
    assert seen == [(3, 9), (6, 9), (9, 9)]
    sizes = np.linalg.norm(eight_lanes.variables["params"]["layer_1"]["kernel"], axis=(1, 2))
    np.testing.assert_allclose(result.history["weight_norm"].values[:, 0, 0], sizes, rtol=1e-6)


@pytest.mark.slow
def test_a_history_says_what_was_run(eight_lanes, tmp_path):
    """Config, hypers and seeds, in memory as in the file; callables by where they can be imported."""
    wanted = Settings(small.CONFIG, tuple(SETTINGS), (0, 1, 2, 3))
    assert settings_from(json.loads(eight_lanes.history.attrs["run"])) == wanted
    own = changed(activation=jnp.tanh, steps=2)
    run(own, SETTINGS[0], [5], dataset=small.dataset(), folder=tmp_path / "run", tensorboard="none")
    stored = settings_from(json.loads(load(tmp_path / "run").attrs["run"]))
    assert stored == Settings(dataclasses.replace(own, activation=text_of(jnp.tanh)), (SETTINGS[0],), (5,))


@pytest.mark.parametrize(
    ("hypers", "seeds", "message"),
    [([], 1, "no lanes"), (Hypers(), [], r"seeds \[\]"), (Hypers(), 0, "seeds 0"), (Hypers(float("nan")), 1, "nan")],
)
def test_refused_lanes(hypers, seeds, message):
    """No lanes, or numbers that mean nothing."""
    with pytest.raises(ValueError, match=message):
        run(small.CONFIG, hypers, seeds, dataset=small.dataset())
