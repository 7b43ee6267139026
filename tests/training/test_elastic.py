"""One program serves every depth: a network that is part of a deeper one computes what it computes alone."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
import small

from vgjax import Config, Hypers, run
from vgjax.training import programs

CONFIG = Config(
    dataset="small",
    hidden=(8,) * 3,
    activation="tanh",
    initializer="mean_field",
    batch_size=16,
    epochs=1,
    record=("all",),
)
FEW = {"record": ("norms", "decay", "activations")}  # families, which compile faster than all
VARIANTS = {
    "plain": {},
    "layer norm, rezero": {"norm": "layer", "branch": "rezero", "optimizer": "adam", "clip": "global_norm"} | FEW,
    "batch norm, residual": {"norm": "batch", "branch": "residual", "last_batch": "keep"}
    | {"record_layers": ("layer_1", "layer_4")}
    | FEW,
}
HYPERS = Hypers(learning_rate=0.02, sigma_w=0.9, sigma_b=0.2, clip_threshold=0.5)


def both(config, **options):
    """The history and variables of the network alone, and as part of one of 13 layers."""
    alone = run(config, HYPERS, 2, dataset=small.dataset(), devices=1, **options)
    inside = run(config, HYPERS, 2, dataset=small.dataset(), devices=1, lanes=3, deepest=13, **options)
    return alone, inside


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_run(variant):
    """Records, evaluations and trained variables; layers by name, the last one's draw among them."""
    alone, inside = both(replace(CONFIG, **VARIANTS[variant]))
    assert list(inside.history["layer"].values) == list(alone.history["layer"].values)
    assert inside.history.sizes == alone.history.sizes
    for name, values in alone.history.data_vars.items():
        found = inside.history[name].values
        if "histogram" in name:
            moved = np.abs(found - values).sum("bin") / values.sum("bin")
            assert moved.max() < 0.05, name  # a number at a bin's edge
        elif values.dtype.kind == "f":
            largest = alone.history["gradient_max"] if name == "gradient_mean" else values
            scale = np.nanmax(np.abs(largest.values)) if "mean" in name or "cosine" in name else 0
            np.testing.assert_allclose(found, values.values, rtol=2e-4, atol=1e-5 * scale, err_msg=name)
    assert jax.tree.structure(inside.variables) == jax.tree.structure(alone.variables)
    for a, b in zip(jax.tree.leaves(inside.variables), jax.tree.leaves(alone.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_depths_share_one_program():
    """Networks of 1, 5 and 13 layers, and the first states of them: compiled once."""
    programs._chunk_program.cache_clear()
    programs._start_program.cache_clear()
    for depth in (1, 5, 13):
        config = replace(CONFIG, hidden=(8,) * depth, record=("norms",))
        assert run(config, HYPERS, dataset=small.dataset(), devices=1, deepest=13).history.sizes["layer"] == depth + 1
    assert programs._chunk_program.cache_info().currsize == programs._start_program.cache_info().currsize == 1


@pytest.mark.slow
def test_where_it_diverged_has_its_own_layers_name():
    """The step and the layer are those of the run alone."""
    config = replace(CONFIG, activation="relu", initializer="he_normal", epochs=2, record=("norms",))
    explode = HYPERS._replace(learning_rate=1e30)
    found = [
        run(config, explode, dataset=small.dataset(), devices=1, deepest=deepest).history.isel(lane=0)
        for deepest in (0, 13)
    ]
    for name in ("first_bad_step", "first_bad_layer", "first_bad_in"):
        assert found[0][name].item() == found[1][name].item()
    assert found[0]["first_bad_step"].item() >= 0


@pytest.mark.parametrize(
    "changes, deepest",
    [
        ({"hidden": (8, 6)}, 13),
        ({"clip": "layer_norm"}, 13),
        ({"initializer": "lsuv"}, 13),
        ({}, 12),
        ({"hidden": (8,) * 14}, 13),
    ],
)
def test_what_cannot_share_is_refused(changes, deepest):
    with pytest.raises(ValueError, match=f"deepest {deepest} is not allowed for this network; allowed: 13 or more"):
        run(replace(CONFIG, **changes), dataset=small.dataset(), deepest=deepest)


@pytest.mark.slow
def test_pairs():
    """Each of the hypers with its own seed; unequal numbers are refused."""
    settings = [HYPERS, HYPERS._replace(learning_rate=0.1)]
    config = replace(CONFIG, record=("norms",))
    paired = run(config, settings, [4, 2], paired=True, dataset=small.dataset(), devices=1).history
    assert paired["seed"].values.tolist() == [4, 2] and paired["learning_rate"].values.tolist() == [0.02, 0.1]
    product = run(config, settings, [4, 2], dataset=small.dataset(), devices=1).history
    for name in ("loss", "gradient_rms", "validation_loss"):
        np.testing.assert_allclose(paired[name].values, product[name].values[[0, 3]], rtol=1e-5)
    with pytest.raises(ValueError, match="2 hypers and 3 seeds cannot be paired; allowed: as many of each"):
        run(CONFIG, settings, [0, 1, 2], paired=True, dataset=small.dataset())
