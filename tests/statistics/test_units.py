"""Statistics of the units against float64, at any magnitude, with a mask, stacked and through several layers."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy_statistics import SIZES, tree_of

from vgjax.network.layer_names import groups
from vgjax.statistics import units, weights

pytestmark = pytest.mark.optimised


def test_every_layer_needs_its_slope():
    layers = groups({"layer_1": jnp.ones((2, 3)), "layer_2": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="shorter"):
        units.activation_statistics(layers, layers, [1.0])


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_activations_deltas_noise_and_decay(size, masked):
    """Two layers by hand, at any magnitude, with planted zeros; with a mask the last example counts nowhere."""
    rng = np.random.default_rng(5)
    x, h = rng.normal(size=(6, 5)) * size, rng.normal(size=(6, 4)) * size
    slopes = [rng.uniform(0, 1, size=(6, 4)), np.ones((6, 3))]
    deltas = [rng.normal(size=(6, 4)) / size, rng.normal(size=(6, 3)) / size]
    w = [rng.normal(size=(5, 4)), rng.normal(size=(4, 3))]
    h[:, 0], slopes[0][:, 0], deltas[0][:, 0] = 0, 0, 0
    mask, n = None, 6
    if masked:
        mask, n = jnp.arange(6) < 5, 5
        for array in (*slopes, *deltas):
            array[5] = 0
    as_layers = lambda arrays: groups({f"layer_{i}": jnp.asarray(a, jnp.float32) for i, a in enumerate(arrays, 1)})  # noqa: E731
    tree = {f"layer_{i}": {"kernel": jnp.asarray(a, jnp.float32)} for i, a in enumerate(w, 1)}
    gradients = [x[:n].T @ deltas[0][:n], h[:n].T @ deltas[1][:n]]
    gradient_tree = {f"layer_{i}": {"kernel": jnp.asarray(a, jnp.float32)} for i, a in enumerate(gradients, 1)}
    found = units.activation_statistics(as_layers([h, h[:, :3]]), as_layers(slopes), [1.0, 1.0], mask)
    found |= units.delta_statistics(as_layers(deltas), mask)
    found |= units.noise_statistics(gradient_tree, as_layers([x, h]), as_layers(deltas), mask)
    found |= units.decay_statistics(tree, as_layers(slopes), as_layers(deltas), mask)
    ratio = np.linalg.norm(deltas[0]) / np.linalg.norm(deltas[1])
    gain, slope = np.sqrt((w[1] ** 2).sum() / 3), np.sqrt((slopes[0][:n] ** 2).mean())
    each = [n * np.einsum("bi,bj->bij", a[:n], d[:n]) for a, d in zip((x, h), deltas, strict=True)]
    want = {
        "activation_mean": [h[:n].mean(), h[:n, :3].mean()],
        "activation_std": [h[:n].std(), h[:n, :3].std()],
        "activation_dead_fraction": [0.25, 0],
        "activation_saturated_fraction": [(slopes[0][:n] <= 0.1).mean(), 0],
        "delta_norm": [np.linalg.norm(d) for d in deltas],
        "delta_rms": [np.sqrt((d[:n] ** 2).mean()) for d in deltas],
        "delta_log10_rms": [np.log10((d[:n] ** 2).mean()) / 2 for d in deltas],
        "gradient_signal_to_noise": [(e.mean(0) ** 2).sum() * n / e.var(0, ddof=1).sum() for e in each],
        "decay_ratio": [ratio, np.nan],
        "decay_weight_gain": [gain, np.nan],
        "decay_slope": [slope, np.nan],
        "decay_alignment": [ratio / gain / slope, np.nan],
    }
    assert found.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=0, err_msg=name)


@pytest.mark.slow
def test_layers_of_a_stack_are_as_layers_by_themselves():
    """A stack has its layers first, [layers, B, units]: the same numbers, and no layer another's."""
    rng = np.random.default_rng(6)
    x, slopes, deltas = (
        jnp.asarray(rng.normal(size=(3, 6, 4)) * [[[1]], [[1e9]], [[1e-9]]], jnp.float32) for _ in "xsd"
    )
    kernels = jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32)
    mask = jnp.arange(6) < 5

    def of(arrays, params):
        h, s, d = (groups(a) for a in arrays)
        found = units.activation_statistics(h, s, [1.0] * len(h), mask) | units.delta_statistics(d, mask)
        return found | units.noise_statistics(params, h, d, mask) | units.decay_statistics(params, s, d, mask)

    alone = [{f"layer_{i}": a[i] for i in range(3)} for a in (x, slopes, deltas)]
    stacked = [{"layers_0_to_2": a} for a in (x, slopes, deltas)]
    expected = of(alone, {f"layer_{i}": {"kernel": k} for i, k in enumerate(kernels)})
    for name, values in of(stacked, {"layers_0_to_2": {"kernel": kernels}}).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=0, err_msg=name)


@pytest.mark.slow
def test_noise_of_equal_examples_and_of_one():
    """Equal examples have none, up to rounding of either sign; of one example nobody knows."""
    rng = np.random.default_rng(7)
    for _ in range(40):
        x, d = rng.normal(size=(1, 5)).astype(np.float32), rng.normal(size=(1, 4)).astype(np.float32)
        for n in (1, 6):
            layers = groups({"layer_1": jnp.tile(x, (n, 1))}), groups({"layer_1": jnp.tile(d / n, (n, 1))})
            (ratio,) = units.noise_statistics(tree_of(x.T @ d), *layers)["gradient_signal_to_noise"]
            assert ratio > 1e5 if n > 1 else np.isnan(ratio)


def test_noise_of_gradients_below_float32_is_not_told():
    """Inputs and δ are numbers, and their products are zeros: as with noise alone."""
    x, d = np.random.default_rng(9).normal(size=(2, 6, 4)).astype(np.float32)
    for size, is_told in ((1e-15, True), (1e-20, False)):
        layers = groups({"layer_1": jnp.asarray(x * size)}), groups({"layer_1": jnp.asarray(d * size)})
        gradient = ((x.T.astype(float) * size) @ (d * size)).astype(np.float32)
        (ratio,) = units.noise_statistics(tree_of(gradient), *layers)["gradient_signal_to_noise"]
        assert np.isfinite(ratio) == is_told


def test_decay_through_three_layers():
    """Every layer over the one above it, with that one's weights and its own slopes."""
    rng = np.random.default_rng(8)
    deltas = [rng.normal(size=(6, 4)) * size for size in (1e-25, 1e-3, 1e20)]
    slopes, w = rng.uniform(0.2, 1, size=(3, 6, 4)), rng.normal(size=(3, 4, 4))
    tree = {f"layer_{i}": {"kernel": jnp.asarray(a, jnp.float32)} for i, a in enumerate(w, 1)}
    layers = [groups({f"layer_{i}": jnp.asarray(a, jnp.float32) for i, a in enumerate(x, 1)}) for x in (slopes, deltas)]
    found = units.decay_statistics(tree, *layers)
    size = np.array([np.linalg.norm(d) for d in deltas])
    gain, slope = np.sqrt((w[1:] ** 2).sum((1, 2)) / 4), np.sqrt((slopes[:-1] ** 2).mean((1, 2)))
    ratio = size[:-1] / size[1:]
    want = {"ratio": ratio, "weight_gain": gain, "slope": slope, "alignment": ratio / gain / slope}
    for name, values in want.items():
        np.testing.assert_allclose(found[f"decay_{name}"], [*values, np.nan], rtol=2e-5, atol=0, err_msg=name)


@pytest.mark.slow
def test_planted_infinities_in_deltas():
    """A bad layer says so, its neighbour's own numbers stay right."""
    deltas = groups({"layer_1": jnp.ones((2, 3)), "layer_2": jnp.ones((2, 3)).at[0, 0].set(jnp.nan)})
    found = units.delta_statistics(deltas)
    assert found["delta_rms"][0] == 1 and np.isnan(found["delta_rms"][1])
    assert weights.any_bad(deltas).tolist() == [False, True]
    batch_of_one = groups({"layer_1": jnp.ones((1, 3))}), groups({"layer_1": jnp.ones((1, 2))})
    assert np.isnan(units.noise_statistics(tree_of(jnp.ones((3, 2))), *batch_of_one)["gradient_signal_to_noise"])
