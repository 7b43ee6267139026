"""Batches and replicas: who sees which examples, and what an incomplete batch counts."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import reference
import small
from engine import batch_of, changed, pieces

from vgjax import run
from vgjax.training.chunk import evaluate
from vgjax.training.step import initial_state, train_step


def numbers(batch):
    """Which examples are in a batch, by their first feature."""
    which = np.rint(np.asarray(batch.inputs[:, 0]) * small.N).astype(int)
    return which if batch.mask is None else which[np.asarray(batch.mask)]


def gradients_of(program, lane, state, batch):
    return jax.jit(lambda *a: train_step(program, *a)[2].gradients)(lane, state, batch)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_replicas_see_disjoint_parts_of_the_batch(reduction):
    """Four replicas start equal and see a quarter each; the sum (mean) of their gradients is the whole batch's."""
    config = changed(replicas=4, reduction=reduction)
    program, shared, lane = pieces(config)
    whole = pieces(changed(reduction=reduction))
    state = initial_state(*whole)
    parts = [batch_of(program, shared, lane, 1, replica) for replica in range(4)]
    assert [len(part.labels) for part in parts] == [4] * 4
    together = batch_of(*whole, 1)
    assert sorted(np.concatenate([numbers(p) for p in parts])) == sorted(numbers(together))
    assert len(set(numbers(together))) == 16
    step = jax.jit(lambda state, batch: train_step(program, lane, state, batch)[2].gradients)
    summed = jax.tree.map(lambda *g: np.sum(np.stack(g), axis=0), *[step(state, part) for part in parts])
    wanted = gradients_of(whole[0], lane, state, together)
    for have, want in zip(jax.tree.leaves(summed), jax.tree.leaves(wanted), strict=True):
        have = have / (4 if reduction == "mean" else 1)
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


@pytest.mark.slow
def test_a_run_of_replicas():
    """Replicas of one seed are lanes from one start that go apart; each is validated on its part of the batches."""
    history = run(changed(replicas=4), seeds=2, dataset=small.dataset()).history
    assert history["seed"].values.tolist() == [0] * 4 + [1] * 4
    assert history["replica"].values.tolist() == [0, 1, 2, 3] * 2
    start, end = (history["weight_norm"].values[:, r].reshape(2, 4, 3) for r in (0, -1))
    assert (start == start[:, :1]).all() and not np.allclose(start[0], start[1])
    assert all(len(np.unique(end[s, :, 0])) == 4 for s in range(2))
    assert set(np.unique(np.round(history["validation_accuracy"].values * 4, 5))) <= {0, 1, 2, 3, 4}  # 16 of 20, by 4


def test_each_replica_is_validated_on_its_part_of_every_batch():
    """Of 20 examples two batches of 8 are used, and of each batch a replica has two."""
    data = small.dataset()
    program, shared, lane = pieces(changed(replicas=4, batch_size=8))
    state = initial_state(program, shared, lane)
    params = reference.as_float64(state.variables["params"])
    for replica in range(4):
        found = jax.jit(evaluate, static_argnums=0)(program, shared, lane._replace(replica=replica), state)
        rows = 2 * replica + np.array([0, 1, 8, 9])
        examples = data.test_inputs[rows].astype(np.float64), data.test_labels[rows]
        loss, _, share, _ = reference.loss_and_gradients(params, *examples, activation="tanh")
        assert float(found["validation_loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(found["validation_accuracy"]) == share


@pytest.mark.parametrize(("batch_size", "last_batch"), [(16, "keep"), (16, "drop"), (14, "keep"), (100, "keep")])
def test_every_example_once_an_epoch(batch_size, last_batch):
    """The last, incomplete batch is kept, and nobody is seen twice for it; or it is dropped."""
    program, shared, lane = pieces(changed(batch_size=batch_size, last_batch=last_batch))
    assert (
        program.steps_per_epoch
        == {(16, "keep"): 4, (16, "drop"): 3, (14, "keep"): 4, (100, "keep"): 1}[batch_size, last_batch]
    )
    for epoch in range(2):
        seen = [numbers(batch_of(program, shared, lane, t, epoch=epoch)) for t in range(program.steps_per_epoch)]
        seen = np.concatenate(seen)
        assert len(seen) == len(set(seen)) == (48 if last_batch == "drop" else small.N)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_the_incomplete_batch_counts_its_own_examples(norm, reduction):
    """Loss, gradients and batch norm's averages of the masked batch are those of its eight true examples."""
    program, shared, lane = pieces(changed(norm=norm, last_batch="keep", reduction=reduction))
    state = initial_state(program, shared, lane)
    batch = batch_of(program, shared, lane, 3)
    assert batch.inputs.shape[0] == 16 and int(batch.mask.sum()) == 8
    after, outcome, view = jax.jit(lambda state: train_step(program, lane, state, batch))(state)
    mask = np.asarray(batch.mask)
    loss, gradients, share, moments = reference.loss_and_gradients(
        reference.as_float64(state.variables["params"]),
        np.asarray(batch.inputs, np.float64)[mask],
        np.asarray(batch.labels)[mask],
        activation="tanh",
        norm=norm,
        reduction=reduction,
    )
    assert float(outcome.loss) == pytest.approx(loss / (8 if reduction == "sum" else 1), rel=1e-5)
    assert (float(outcome.examples), float(outcome.correct)) == (8, round(share * 8))
    for layer in ("layer_1", "layer_2", "layer_3"):
        want = gradients[layer]["kernel"]
        np.testing.assert_allclose(view.gradients[layer]["kernel"], want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    if norm == "batch":
        for name, moment in moments.items():
            have = after.variables["batch_stats"][name]
            np.testing.assert_allclose(have["var"], 0.99 + 0.01 * moment["var"], rtol=1e-6)
            np.testing.assert_allclose(have["mean"], 0.01 * moment["mean"], rtol=1e-4, atol=1e-7)
