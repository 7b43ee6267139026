"""`vgjax show`: print the network layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes

from vgjax.command.options import DEFAULTS, ConfigFile, Count, DataDir
from vgjax.config import Config

if TYPE_CHECKING:
    from vgjax.network.model import ModuleRow


@dataclass(frozen=True)
class Show:
    """Print the network layer by layer: shapes, parameter counts, σ_w² of the initializer."""

    config_file: ConfigFile = None
    features: Count = None
    """Width of the input; default: the data set's [features]."""
    classes: Count = None
    """Number of logits; default: the data set's [classes]."""
    data_dir: DataDir = None
    config: OmitArgPrefixes[Config] = DEFAULTS.config
    """The network; options of training have no effect here."""

    def run(self) -> None:
        """Print the table."""
        from vgjax.network.model import describe
        from vgjax.training.checks import check_names

        for name in ("features", "classes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value} is not allowed; allowed: whole numbers from 1")
        check_names(self.config)
        features, classes = self.features, self.classes
        if not (features and classes):
            known = _features_and_classes(self.config.dataset, self.data_dir)
            features, classes = features or known[0], classes or known[1]
        print_network(describe(self.config, features, classes), features)


def _features_and_classes(dataset: Any, data_dir: Path | None) -> tuple[int, int]:
    from vgjax.data.catalogue import DATASETS, DataUnavailable, load

    if row := DATASETS.get(str(dataset)):
        return row.features, row.classes
    try:
        found = load(dataset, data_dir)
    except DataUnavailable:
        allowed = "a prepared data set, or --features INT and --classes INT"
        raise ValueError(f"data set {dataset!r} is not available; allowed: {allowed}") from None
    return found.train_inputs.shape[1], found.classes


def print_network(rows: Sequence[ModuleRow], features: int) -> None:
    """Print the network module by module, and the total.

    Args:
      rows: as `vgjax.network.model.describe` gives them.
      features: width of the network's input.
    """
    from vgjax.command.printing import print_table

    cells: list[tuple] = []
    width = features
    for row in rows:
        outputs = row.outputs if row.kind == "dense" else width
        sigma_w2 = None if row.sigma_w2 is None else f"{row.sigma_w2:.4g}"
        cells.append((row.name, row.kind, width, outputs, row.parameters, sigma_w2))
        width = outputs
    cells.append(("total", None, features, width, sum(row.parameters for row in rows), None))
    columns = ("module", "kind", "in", "out", "parameters", "σ_w²")
    print_table("σ_w² = fan_in · Var(W) of the initializer, before --sigma-w", columns, cells, columns[2:])
