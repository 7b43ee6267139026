"""Layers by name: which leaves of a pytree are weights, what their layers are called, and which of them are stacked.

A stack holds several layers of one shape in one array, the layers along its first axis, as `nn.scan` and `jax.vmap`
make them. Everything here knows names and shapes alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vgjax.names import nearest

_STACK = re.compile(r"layers_(\d+)_to_(\d+)(/.*)?")
# The last key of the path to an array inside a box of Flax's (nnx.Param, nn.Partitioned). It is no part of the layer's
# name, unless the box holds more than the array.
_BOX = (jax.tree_util.GetAttrKey("value"),)


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["names", "is_stack"])
@dataclass(frozen=True)
class Group:
    """One layer, or the layers of one stack; a pytree whose only leaf is `values`."""

    names: tuple[str, ...]
    values: jax.Array  # of a stack: [layers, …]
    is_stack: bool


def layer_name(number: int) -> str:
    """The name of a layer of the MLP family, counted from 1.

    >>> layer_name(3)
    'layer_3'
    """
    return f"layer_{number}"


def layer_names(layers: int) -> list[str]:
    """The names of the layers 1 … `layers`.

    >>> layer_names(2)
    ['layer_1', 'layer_2']
    """
    return [layer_name(number) for number in range(1, layers + 1)]


def layer_number(name: str) -> int:
    """The number at the end of a module's name: of a layer, a norm or an α.

    >>> layer_number("layer_12")
    12
    """
    return int(name.rpartition("_")[2])


def stack_name(first: int, last: int) -> str:
    """The name of the module that holds the layers `first` … `last` in one stack.

    >>> stack_name(2, 240)
    'layers_2_to_240'
    """
    return f"layers_{first}_to_{last}"


def layers_of_stack(name: str) -> range | None:
    """The numbers of the layers in a stack of the MLP family; None where `name` is not the name of one.

    >>> layers_of_stack("layers_2_to_240")
    range(2, 241)
    """
    found = _STACK.fullmatch(name)
    return range(int(found[1]), int(found[2]) + 1) if found else None


def weight_groups(tree: Any, stacked: str = "") -> list[Group]:
    """The weights of a parameter-shaped pytree, in natural order of their layers' names (layer_2 before layer_10).

    The name of a layer is the path of the module that holds its weight, or the path of the weight itself where the
    module holds several. The name of a single array without a path is `weights`.

    Args:
      tree: parameters, gradients or updates of any library. Weights are the floating leaves of two or more dimensions,
        except empty ones and those named `bias`.
      stacked: a path or glob pattern (`blocks`, `*/blocks`); all leaves below it are stacks, and their layers are named
        `blocks/dense[3]`. The stacks of the MLP family need no pattern.

    Raises:
      ValueError: `stacked` fits no path, or two layers have the same name.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    inside = Counter(path[:-1] for path, _ in leaves)
    bare = [(path[:-1] if path[-1:] == _BOX and inside[path[:-1]] == 1 else path, leaf) for path, leaf in leaves]
    weights = [(path, leaf) for path, leaf in bare if is_weight(path, leaf, stacked)]
    if stacked and bare and not any(_is_stack(_text(path), stacked) for path, _ in bare):
        modules = {_text(path[:n]) for path, _ in weights for n in range(1, len(path))}
        raise ValueError(f"stacked {stacked!r} fits no layer; {nearest(stacked, sorted(modules))}")
    shared = Counter(path[:-1] for path, _ in weights)
    found: dict[str, Group] = {}
    for path, leaf in weights:
        name = _text(path[:-1] if shared[path[:-1]] == 1 and path[:-1] else path) or "weights"
        if name in found:
            raise ValueError(f"two layers are called {name!r}; allowed: paths that differ when written with slashes")
        found[name] = group(name, leaf, _is_stack(_text(path), stacked))
    return sorted(found.values(), key=_order)


def groups(arrays: Mapping[str, jax.Array]) -> list[Group]:
    """Arrays named as layers and stacks of the MLP family, as groups in natural order."""
    return sorted((group(name, array) for name, array in arrays.items()), key=_order)


def group(name: str, array: jax.Array, is_stack: bool = False) -> Group:
    """An array as a group: one layer, or the layers of a stack; names of the MLP family's stacks are recognised."""
    if (numbers := layers_of_stack(name)) is not None:
        return Group(tuple(map(layer_name, numbers)), array, True)
    if is_stack:
        return Group(tuple(f"{name}[{i}]" for i in range(array.shape[0])), array, True)
    return Group((name,), array, False)


def unstacked(modules: dict[str, Any]) -> dict[str, Any]:
    """Parameters (or batch statistics) with every stack split into its layers: {"layer_2": …, "norm_2": …, …}."""
    single: dict[str, Any] = {}
    for name, leaves in modules.items():
        if (numbers := layers_of_stack(name)) is not None:
            for row, i in enumerate(numbers):
                single |= {
                    f"{kind}_{i}": jax.tree.map(lambda x, row=row: x[row], leaf) for kind, leaf in leaves.items()
                }
        else:
            single[name] = leaves
    return single


def is_weight(path: tuple[Any, ...], leaf: Any, stacked: str = "") -> bool:
    """Whether a leaf is a weight: floating, not named `bias`, and of two or more dimensions besides that of a stack."""
    if not jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.floating) or _text(path[-1:]) == "bias":
        return False
    return leaf.ndim >= 2 + _is_stack(_text(path), stacked) and leaf.size > 0


def _is_stack(path: str, stacked: str) -> bool:
    if layers_of_stack(path) is not None:
        return True
    return bool(stacked) and (fnmatchcase(path, stacked) or fnmatchcase(path, f"{stacked}/*"))


def _text(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _order(one: Group) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", one.names[0])]
