"""Statistics against float64 NumPy over sixty orders of magnitude."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_statistics import SIZES, TINY, expected, from_bits, tree_of

from vgjax.network.layer_names import weight_groups
from vgjax.statistics import weights

pytestmark = pytest.mark.optimised


def found(g):
    """The package's, of one layer, compiled."""
    tree = {"layer_1": {"kernel": jnp.asarray(g)}}
    statistics = jax.jit(lambda tree: weights.norm_statistics(tree) | weights.gradient_statistics(tree))(tree)
    return {name: float(value[0]) for name, value in statistics.items()}


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e-20, 1e-7, 1.0, 1e20, 1e30, 3e37])
def test_statistics_at_every_magnitude(size):
    """A layer with zeros among its gradients, scaled to vanish and to explode."""
    rng = np.random.default_rng(0)
    g = (rng.normal(size=(300, 200)) + 0.3).astype(np.float32)
    g[::7, ::5] = 0
    g = (g.astype(np.float64) * size).astype(np.float32)
    g[np.abs(g) < TINY] = 0
    want, have = expected(g), found(g)
    assert have.keys() == want.keys()
    for name, value in want.items():
        if name == "gradient_log10_rms":
            assert have[name] == pytest.approx(value, abs=2e-6), (
                name
            )  # a logarithm: an absolute error is a relative one
        elif abs(value) > np.finfo(np.float32).max:
            assert have[name] == np.inf, name  # a norm beyond float32
        else:
            assert have[name] == pytest.approx(value, rel=5e-6, abs=0), name


@pytest.mark.parametrize("largest", [1e38, 3e38, np.finfo(np.float32).max])
def test_the_largest_numbers_are_not_taken_for_zero(largest):
    """Up to the last float32: RMS, mean and maximum are right, a norm that is no float32 is infinite."""
    g = np.array([[largest, -largest], [largest / 2, 0]], np.float32)
    want, have = expected(g), found(g)
    for name in ("gradient_rms", "gradient_log10_rms", "gradient_mean", "gradient_max", "gradient_std"):
        assert have[name] == pytest.approx(want[name], rel=1e-6), name
    wanted = want["gradient_norm"] if want["gradient_norm"] < np.finfo(np.float32).max else np.inf
    assert have["gradient_norm"] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    "planted", [[0.0], [np.inf], [-np.inf], [np.inf, -np.inf], [np.nan], [np.nan, np.inf]], ids=str
)
def test_zeros_infinities_and_nan(planted):
    """As NumPy has them: Inf makes norms Inf and the deviation NaN, NaN all NaN; of zeros log₁₀ is −Inf."""
    g = np.ones((4, 3), np.float32) * (0 if planted == [0.0] else 1)
    g.flat[: len(planted)] = planted
    want, have = expected(g), found(g)
    for name in want:
        assert have[name] == pytest.approx(want[name], nan_ok=True), name


def test_subnormals_are_no_exact_zeros():
    """A flushing CPU computes with them as zeros, and they are still not counted as such."""
    have = found(from_bits([[1, 0x80000001, 0x007FFFFF, 0]]))
    assert have["gradient_zero_fraction"] == 0.25


def test_what_low_precision_loses_ends_where_it_rounds_to_zero():
    """2⁻²⁵ and 2⁻¹³⁴ round to zero in their types, the next float32 does not."""
    have = found(from_bits([[0x33000000, 0x33000001, 0x3F800000, 0x3F800000]]))
    assert have["gradient_float16_underflow"] == 0.25 and have["gradient_bfloat16_underflow"] == 0
    have = found(from_bits([[0x00008000, 0x80008000, 0x00008001, 0x80008001, 0x3F800000]]))
    assert have["gradient_bfloat16_underflow"] == pytest.approx(0.4) and have["gradient_zero_fraction"] == 0


@pytest.mark.slow
def test_many_small_terms_are_not_lost():
    """The sum over a million elements keeps float32's digits."""
    g = np.full((1000, 1000), 0.1, np.float32)
    g[0, 0] = 100.0
    for name, value in expected(g).items():
        assert found(g)[name] == pytest.approx(value, rel=2e-6), name


def test_weight_statistics():
    """‖W‖ and ‖ΔW‖/‖W‖ a layer, whatever their magnitudes; Inf where W = 0."""
    rng = np.random.default_rng(1)
    w, dw = ([rng.normal(size=(5, 4)).astype(np.float32) for _ in range(3)] for _ in range(2))
    w[0], dw[0], dw[1], w[2] = w[0] * 1e-25, dw[0] * 1e-30, dw[1] * 1e30, w[2] * 0
    trees = [{f"layer_{i}": {"kernel": jnp.asarray(x)} for i, x in enumerate(xs, 1)} for xs in (w, dw)]
    have = jax.jit(weights.weight_statistics)(*trees)
    sizes = [[np.linalg.norm(x.astype(np.float64)) for x in xs] for xs in (w, dw)]
    np.testing.assert_allclose(have["weight_norm"], sizes[0], rtol=1e-6)
    np.testing.assert_allclose(have["update_ratio"][:2], np.divide(sizes[1][:2], sizes[0][:2]), rtol=1e-6)
    assert have["update_ratio"][2] == np.inf


@pytest.mark.parametrize("size", SIZES)
def test_the_three_points(size):
    """Norms, share clipped and cosines of gradient, clipped gradient and update, each of another magnitude."""
    rng = np.random.default_rng(4)
    unit, dw = rng.normal(size=(2, 40, 30))
    g, dw = (unit * size).astype(np.float32), (dw / size).astype(np.float32)
    g[::3] = 0
    c = np.clip(g, -0.7 * np.float32(size), 0.7 * np.float32(size))
    found = jax.jit(weights.point_statistics)(tree_of(g), tree_of(c), tree_of(dw))
    g, c, dw = (x.astype(np.float64) for x in (g, c, dw))
    cosine = lambda a, b: (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    want = {
        "clipped_norm": np.linalg.norm(c),
        "clipped_fraction": np.mean(c != g),
        "clipped_cosine": cosine(g, c),
        "update_norm": np.linalg.norm(dw),
        "update_cosine": cosine(-g, dw),
    }
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert float(found[name][0]) == pytest.approx(value, rel=2e-5, abs=0), name


def test_clipping_may_also_enlarge():
    """An element counts as clipped whichever way it was changed."""
    raw, clipped = jnp.array([[1.0, -1.0, 2.0, 3.0]]), jnp.array([[2.0, -3.0, 1.0, 3.0]])
    assert weights.point_statistics(*map(tree_of, (raw, clipped, raw)))["clipped_fraction"][0] == 0.75


@pytest.mark.slow
@pytest.mark.parametrize("is_stack", [False, True])
def test_a_gradient_that_nothing_clips(is_stack):
    """The same array at two points is unclipped, NaN too; a copy of it likewise, and one other bit is seen."""
    g = jnp.array([[[1.0, jnp.nan], [0.0, 1e-40]]] * 3)[slice(None) if is_stack else 0]
    tree = lambda x: {"layers_1_to_3" if is_stack else "layer_1": {"kernel": x}}  # noqa: E731
    points = lambda c: np.asarray(weights.point_statistics(tree(g), tree(c), tree(g))["clipped_fraction"])  # noqa: E731
    np.testing.assert_array_equal(points(g), 0)
    np.testing.assert_array_equal(points(jnp.array(np.array(g))), 0)
    np.testing.assert_array_equal(points(g.at[..., 1, 0].set(-0.0)), 0.25)


def test_a_vanished_point_has_no_direction():
    """Cosines with zeros are undefined, NaN and Inf stay, and nothing is hidden."""
    zero, one = jnp.zeros((3, 2)), jnp.ones((3, 2))
    found = weights.point_statistics(tree_of(one), tree_of(zero), tree_of(one.at[0, 0].set(jnp.nan)))
    assert np.isnan(found["clipped_cosine"][0]) and np.isnan(found["update_norm"][0])
    assert found["clipped_norm"][0] == 0 and found["clipped_fraction"][0] == 1
    assert weights.point_statistics(*[tree_of(one.at[0, 0].set(jnp.inf))] * 3)["update_norm"][0] == np.inf


@pytest.mark.parametrize("size", [1e-36, 1e-22, 1.0, 1e25])
def test_one_vanished_layer_spoils_no_other(size):
    """Norms are right in both layers, whichever leaves the range of plain squares, and in a dead one beside them."""
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(2, 30, 20)).astype(np.float32)
    b = (b * size).astype(np.float32)
    b[np.abs(b) < TINY] = 0
    layers = a, b, np.zeros_like(a)
    tree = {f"layer_{i}": {"kernel": jnp.asarray(x)} for i, x in enumerate(layers)}
    found = jax.jit(weights.norm_statistics)(tree)
    for i, x in enumerate(layers):
        want = expected(x)
        for name in ("gradient_norm", "gradient_rms"):
            assert float(found[name][i]) == pytest.approx(want[name], rel=3e-6, abs=0), name
        assert float(found["gradient_log10_rms"][i]) == pytest.approx(want["gradient_log10_rms"], rel=0, abs=2e-6)


def test_layers_of_a_stack_count_their_own_elements():
    """Three layers in one array beside one by itself, zeros and small numbers among them, some in either type lost."""
    rng = np.random.default_rng(9)
    stack, single = rng.normal(size=(3, 5, 4)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    stack[0, :2], stack[1, 0], stack[2, 0, 0], stack[2, 1] = 0, 1e-9, 0, from_bits(0x00000007)
    tree = {"blocks": {"kernel": jnp.asarray(stack)}, "head": {"kernel": jnp.asarray(single)}}
    have = jax.jit(lambda tree: weights.norm_statistics(tree, "blocks") | weights.gradient_statistics(tree, "blocks"))(
        tree
    )
    for i, layer in enumerate([*stack, single]):
        for name, value in expected(layer).items():
            assert float(have[name][i]) == pytest.approx(value, rel=5e-6, abs=1e-30), (name, i)


def test_norm_and_rms():
    """The two alone say what the record says."""
    g = (np.random.default_rng(2).normal(size=(30, 20)) * 1e-30).astype(np.float32)
    for function, name in ((weights.norm, "gradient_norm"), (weights.rms, "gradient_rms")):
        assert float(function(jnp.asarray(g))) == pytest.approx(expected(g)[name], rel=1e-6, abs=0)


def test_layers_stand_in_natural_order():
    """layer_2 before layer_10; biases and norms are no layers."""
    tree = {f"layer_{i}": {"kernel": jnp.zeros((i, 2)), "bias": jnp.zeros(2)} for i in (10, 2, 1)}
    tree |= {"norm_1": {"scale": jnp.zeros(2)}, "alpha_1": jnp.zeros(())}
    found = weight_groups(tree)
    assert [group.names for group in found] == [("layer_1",), ("layer_2",), ("layer_10",)]
    assert [group.values.shape[0] for group in found] == [1, 2, 10]


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e37])
@pytest.mark.parametrize("ratio", [-0.125, 1e-6])
def test_update_ratio_where_norms_overflow(size, ratio):
    """The norm of 1600 weights of 3·10³⁷ is no float32 number, and that of their update need not be one either."""
    before = {"a": {"w": jnp.full((40, 40), size)}}
    updates = jax.tree.map(lambda w: w * ratio, before)
    found = weights.weight_statistics(before, updates)
    assert float(found["update_ratio"][0]) == pytest.approx(abs(ratio), rel=1e-6)
    assert np.isinf(found["weight_norm"][0]) == (size == 3e37)


def test_cosines_end_at_1():
    """Rounding of three sums would go beyond, where arccos has no value."""
    for seed in range(30):
        g = {"a": {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(3, 3)), jnp.float32)}}
        found = weights.point_statistics(g, g, jax.tree.map(lambda x: -0.1 * x, g))
        assert float(found["update_cosine"][0]) <= 1 and float(found["update_cosine"][0]) == pytest.approx(1, rel=1e-6)


@pytest.mark.slow
def test_many_lost_numbers_are_counted():
    """In layers of which all is lost, all zero, and of which half is zero and a quarter lost in float16."""
    some = np.ones((200, 300), np.float32)
    some[:100], some[100:150] = 0, 1e-9
    arrays = jnp.full((70, 100), 1e-9), jnp.zeros((1100, 1000)), jnp.asarray(some)
    have = weights.gradient_statistics({f"layer_{i}": {"kernel": x} for i, x in enumerate(arrays, 1)})
    assert have["gradient_zero_fraction"].tolist() == [0, 1, 0.5]
    for kind, lost in (("float16", [1, np.nan, 0.5]), ("bfloat16", [0, np.nan, 0])):
        np.testing.assert_array_equal(have[f"gradient_{kind}_underflow"], lost)


def test_bad_layers_are_told_apart():
    """Of layers by themselves and in a stack, compiled."""
    stack = jnp.ones((3, 4, 4))
    tree = {
        "layer_1": {"kernel": jnp.ones((4, 4)).at[1, 2].set(jnp.inf)},
        "layers_2_to_4": {"kernel": stack.at[1, 3, 3].set(jnp.nan)},
        "layer_5": {"kernel": jnp.ones((4, 2))},
    }
    found = jax.jit(lambda tree: weights.any_bad(weight_groups(tree)))(tree)
    assert found.tolist() == [True, False, True, False, False]
