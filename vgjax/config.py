"""What a run is: `Config` (static: changes shapes or the compiled program) and `Hypers` (traced numbers).

This module imports only the standard library, so that `vgjax --help` is quick.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from vgjax.names import nearest

if TYPE_CHECKING:
    Named = str | Callable[..., Any]
else:
    Named = str

LARGEST = 2**31 - 1  # whole numbers are int32 on the device
LARGEST_FLOAT = 3.4e38  # other numbers are float32
_ALLOWED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of names",
}


class Hypers(NamedTuple):
    """Numbers that may differ from lane to lane of one compiled program."""

    learning_rate: float = 0.1
    """Step size, at the start of the schedule [1 per unit of gradient]."""
    weight_decay: float = 0.0
    """Weight decay; biases and norm parameters are left out [per step and unit of learning rate]."""
    clip_threshold: float = 1.0
    """Threshold of --clip [gradient units; for agc, a ratio to the weight's norm]."""
    sigma_w: float = 1.0
    """Factor on every initial weight; with the initializer mean_field, the theory's σ_w [dimensionless]."""
    sigma_b: float = 0.0
    """Standard deviation of the initial biases [pre-activation units]."""


@dataclass(frozen=True)
class Config:
    """Everything that changes shapes or the compiled program."""

    dataset: Named = "mnist"
    """Data set: see `vgjax list datasets`; any TFDS image classification set; or a folder of IDX files [name]."""
    scaling: Literal["auto", "1/255", "1/256", "standardised", "none"] = "auto"
    """Inputs are multiplied by this, or standardised per feature; auto: 1/255 for bytes, none for floats."""
    holdout: int = 0
    """The first so many training examples validate instead of training; 0: the test split validates [examples]."""

    hidden: tuple[int, ...] = (512, 256, 128, 64, 32, 16)
    """Widths of the hidden layers [units]."""
    activation: Named = "relu"
    """Activation of the hidden layers: see `vgjax list activations`, or module:function [name]."""
    initializer: Named = "he_normal"
    """Initializer of the weights: see `vgjax list initializers`, or module:function [name]."""
    output_initializer: Named = ""
    """Initializer of the last layer's weights; empty: the same as the others [name]."""
    bias: bool = True
    """Whether layers have biases [yes/no]."""
    norm: Literal["none", "batch", "layer"] = "none"
    """Normalisation."""
    norm_at: Literal["pre_activation", "post_activation", "layer_inputs", "network_input"] = "pre_activation"
    """Where it normalises: before or after the activation, each hidden layer's inputs, or the network's input."""
    norm_epsilon: float = 1e-5
    """Added to the variance inside the normalisation [activation units squared]."""
    norm_momentum: float = 0.99
    """Batch norm's running averages keep this share at each step [dimensionless]."""
    branch: Literal["plain", "residual", "rezero"] = "plain"
    """plain; residual: x + f(x) wherever widths agree; rezero: x + α f(x) there, α = 0 at the start."""

    optimizer: Named = "sgd"
    """Optimizer: see `vgjax list optimizers`, or module:function giving an Optax transformation [name]."""
    schedule: Named = "constant"
    """Learning-rate schedule: see `vgjax list schedules` [name]."""
    clip: Literal["none", "value", "global_norm", "layer_norm", "agc"] = "none"
    """Gradient clipping, at --clip-threshold."""
    decay: Literal["decoupled", "l2"] = "decoupled"
    """Weight decay added after the optimizer (AdamW) or to the gradient before it (l2, as MXNet)."""

    batch_size: int = 128
    """Examples a step [examples]."""
    epochs: int = 10
    """Passes over the training set [epochs]."""
    steps: int = 0
    """Stop after so many steps; 0: after --epochs [steps]."""
    shuffle: Literal["every_epoch", "once", "never"] = "every_epoch"
    """When the training set is shuffled, on the device."""
    last_batch: Literal["drop", "keep"] = "drop"
    """The incomplete batch at the end of an epoch."""
    reduction: Literal["mean", "sum"] = "mean"
    """Gradients are means or sums over the batch; sums are divided by --batch-size on their way to the optimizer."""
    validate: Literal["every_epoch", "end"] = "every_epoch"
    """When the validation examples are looked at; between, their loss and accuracy are NaN."""
    replicas: int = 1
    """Unsynchronised replicas from one start, each on its own part of every batch, as old MXNet ran [replicas]."""
    cadence: Named = "epoch"
    """At which steps statistics are recorded: see `vgjax list cadences`; all other steps pay nothing [name]."""
    record: tuple[str, ...] = (
        *("norms", "spread", "weights", "points", "activations", "deltas", "decay"),
        *("gradient_histogram", "weight_histogram"),
    )
    """What is recorded of every layer: see `vgjax list families`, or all [names]."""
    record_layers: tuple[str, ...] = ("*",)
    """Of which layers: names or patterns like layer_[1-3] [names]."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Config).items():
            object.__setattr__(self, name, typed(name, getattr(self, name), hint))
        for name in ("holdout", "steps"):
            _check(name, getattr(self, name), 0)
        for name in ("batch_size", "replicas"):
            _check(name, getattr(self, name), 1)
        _check("epochs", self.epochs, 0)
        if self.epochs == 0 and self.steps == 0:
            raise ValueError("epochs and steps are both 0: nothing to do; allowed: 1 or more of one of them")
        for width in self.hidden:
            _check("hidden", width, 1)
        if self.batch_size % self.replicas:
            problem = f"batch_size {self.batch_size} does not divide into {self.replicas} replicas"
            raise ValueError(f"{problem}; allowed: a multiple of {self.replicas}")
        if self.replicas > 1 and self.last_batch == "keep":
            raise ValueError("last_batch 'keep' is not allowed with replicas; allowed: drop")
        if not 0 <= self.norm_momentum < 1:
            raise ValueError(f"norm_momentum {self.norm_momentum} is not allowed; allowed: 0 to below 1")
        if not 0 <= self.norm_epsilon <= LARGEST_FLOAT:
            raise ValueError(f"norm_epsilon {self.norm_epsilon} is not allowed; allowed: 0 or more, to {LARGEST_FLOAT}")


def check_hypers(hypers: Hypers) -> None:
    """Refuse hyper-parameters that make no sense.

    Raises:
      ValueError: no number, NaN, negative, or too large for float32 (where only a threshold may be infinite).
    """
    if not isinstance(hypers, Hypers):
        raise ValueError(f"hypers {reprlib.repr(hypers)} is not allowed; allowed: vgjax.Hypers")
    for name, value in hypers._asdict().items():
        number, endless = typed(name, value, float), name == "clip_threshold"
        if not 0 <= number <= LARGEST_FLOAT and not (endless and number == math.inf):
            allowed = f"0 or more, to {LARGEST_FLOAT}{', or inf' if endless else ''}"
            raise ValueError(f"{name} {value} is not allowed; allowed: {allowed}")


def typed(name: str, value: Any, hint: Any) -> Any:
    """A field's value in the type of its hint: NumPy's numbers become Python's, lists become tuples.

    Raises:
      ValueError: the value is of another type, or not one of the choices.
    """
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        if isinstance(value, str) and value in args:
            return value
        raise ValueError(f"{name} {reprlib.repr(value)} is not allowed; {nearest(value, args)}")
    if kind is tuple:
        listed = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Set)
        found = [_plain(one, args[0]) for one in value] if listed else [None]
        if None not in found:
            return tuple(found)
    elif (plain := _plain(value, kind)) is not None:
        return plain
    raise ValueError(f"{name} {reprlib.repr(value)} is not allowed; allowed: {_ALLOWED[hint]}")


def _plain(value: Any, kind: type) -> Any:
    """The value as a `kind`, or None if it is of another type; a name may also be a function."""
    if kind is str:
        return value if isinstance(value, str) or callable(value) else None
    number = {int: Integral, float: Real}.get(kind, bool)
    if not isinstance(value, number) or (isinstance(value, bool) and kind is not bool):
        return None
    try:
        return kind(value)
    except OverflowError:
        return None


def _check(name: str, value: int, least: int) -> None:
    if not least <= value <= LARGEST:
        raise ValueError(f"{name} {value} is not allowed; allowed: whole numbers from {least} to {LARGEST}")
