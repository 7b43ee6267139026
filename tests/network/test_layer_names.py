"""Which leaves are weights, what their layers are called, and how stacks come apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax.network.layer_names import (
    group,
    groups,
    is_weight,
    layer_name,
    layer_names,
    layer_number,
    layers_of_stack,
    stack_name,
    unstacked,
    weight_groups,
)


def names(tree, **kwargs):
    return [name for group in weight_groups(tree, **kwargs) for name in group.names]


def test_names_and_numbers():
    """Every name is read back as the numbers that it was made of."""
    assert layer_names(3) == ["layer_1", "layer_2", "layer_3"] and layer_names(0) == []
    for number in (1, 12, 240):
        assert layer_number(layer_name(number)) == layer_number(f"norm_{number}") == number
    assert layers_of_stack(stack_name(2, 240)) == range(2, 241)
    assert layers_of_stack("layer_2") is None and layers_of_stack("blocks/layers_2_to_240") is None


def test_own_stack_has_the_names_of_its_layers():
    """Kernels of three dimensions are three layers; stacked biases, scales and alphas are none."""
    stack = {
        "layer": {"kernel": jnp.zeros((3, 4, 4)), "bias": jnp.zeros((3, 4))},
        "norm": {"scale": jnp.zeros((3, 4))},
        "alpha": jnp.zeros(3),
    }
    tree = {
        "layer_1": {"kernel": jnp.zeros((2, 4))},
        stack_name(2, 4): stack,
        "layer_5": {"kernel": jnp.zeros((4, 2))},
    }
    assert names(tree) == ["layer_1", "layer_2", "layer_3", "layer_4", "layer_5"]
    weights = jax.tree_util.tree_map_with_path(is_weight, tree)
    assert weights[stack_name(2, 4)] == {
        "layer": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "alpha": False,
    }


def test_unstacked():
    """Every layer by itself, its own row of the stack."""
    kernel, alpha = np.arange(24.0).reshape(3, 4, 2), np.arange(3.0)
    single = unstacked({stack_name(9, 11): {"layer": {"kernel": kernel}, "alpha": alpha}, "layer_12": {"kernel": 1}})
    assert sorted(single) == ["alpha_10", "alpha_11", "alpha_9", "layer_10", "layer_11", "layer_12", "layer_9"]
    np.testing.assert_array_equal(single["layer_10"]["kernel"], kernel[1])
    assert single["alpha_11"] == 2


@pytest.mark.parametrize("pattern", ["blocks", "bl*", "blocks/dense"])
def test_a_strangers_stack(pattern):
    """By a pattern for its path; in natural order, and a convolution beside it stays one layer."""
    tree = {
        "blocks": {"dense": {"kernel": jnp.zeros((12, 4, 4)), "bias": jnp.zeros((12, 4))}},
        "conv": {"kernel": jnp.zeros((3, 3, 4, 8))},
        "embedding": jnp.zeros((10, 4)),
    }
    found = weight_groups(tree, stacked=pattern)
    assert [group.is_stack for group in found] == [True, False, False]
    assert names(tree, stacked=pattern)[:3] == ["blocks/dense[0]", "blocks/dense[1]", "blocks/dense[2]"]
    assert names(tree, stacked=pattern)[-2:] == ["conv", "embedding"]


def test_two_weights_in_one_module_have_their_own_names():
    cell = {"cell": {"weight_hh": jnp.zeros((4, 4)), "weight_ih": jnp.zeros((2, 4)), "bias": jnp.zeros(4)}}
    assert names(cell) == ["cell/weight_hh", "cell/weight_ih"]


def test_groups_of_what_layers_hand_over():
    """By name alone: a batch of vectors is no stack unless it is called so."""
    found = groups({"layer_10": jnp.zeros((7, 3)), "layers_2_to_9": jnp.zeros((8, 7, 4)), "layer_1": jnp.zeros((7, 5))})
    assert [g.is_stack for g in found] == [False, True, False]
    assert [name for g in found for name in g.names] == [f"layer_{i}" for i in range(1, 11)]
    assert group("layer_3", jnp.zeros((2, 2))).names == ("layer_3",)
