"""A data set's arrays on the host, checked; and the error for a data set that cannot be had."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set on the host; where there is no test split, the training set stands in for it.

    Raises:
      ValueError: shapes, types or labels do not fit together.
    """

    name: str
    train_inputs: np.ndarray
    """Training examples, uint8 or float32 [examples, features]."""
    train_labels: np.ndarray
    """Their classes, int32 from 0 [examples]."""
    test_inputs: np.ndarray
    """Test examples, of the same type [examples, features]."""
    test_labels: np.ndarray
    """Their classes [examples]."""
    classes: int
    """Number of classes."""
    shape: tuple[int, ...]
    """Shape of one example before it was flattened; their product is the number of features."""
    source: str
    """Where it comes from."""

    def __post_init__(self) -> None:
        features = math.prod(self.shape)
        for split in ("train", "test"):
            inputs, labels = getattr(self, f"{split}_inputs"), getattr(self, f"{split}_labels")
            problem = ""
            if inputs.dtype not in (np.uint8, np.float32) or labels.dtype != np.int32:
                problem = f"{inputs.dtype} inputs and {labels.dtype} labels; allowed: uint8 or float32, and int32"
            elif inputs.dtype != self.train_inputs.dtype:
                problem = f"{inputs.dtype} inputs, where training has {self.train_inputs.dtype}"
            elif len(inputs) == 0 or inputs.shape != (len(labels), features) or labels.ndim != 1:
                problem = f"inputs {inputs.shape} and labels {labels.shape}; allowed: (N, {features}) and (N,), N > 0"
            elif labels.min() < 0 or labels.max() >= self.classes:
                problem = f"labels {labels.min()} to {labels.max()}; allowed: 0 to {self.classes - 1}"
            elif inputs.dtype == np.float32 and (bad := ~np.isfinite(inputs)).any():
                first = int(bad.any(axis=1).argmax())
                problem = f"{bad.sum()} of {bad.size} inputs that are NaN or infinite, the first in example {first}"
            if problem:
                raise ValueError(f"data set {self.name!r}: its {split} split has {problem}")


def empty_classes(dataset: Dataset, holdout: int = 0) -> list[int]:
    """The classes that have no training example.

    Args:
      dataset: the data.
      holdout: the number of training examples that are used for validation instead.
    """
    counts = np.bincount(dataset.train_labels[holdout:], minlength=dataset.classes)
    return np.flatnonzero(counts == 0).tolist()


class DataUnavailable(ValueError):
    """The data set exists, but there are no files of it and no network."""
