"""`vgjax show`: the network layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from vgjax.command.options import DEFAULTS, Count, File, Folder
from vgjax.config import Config


@dataclass(frozen=True)
class Show:
    """Print the network layer by layer: shapes, parameter counts, σ_w² of the initializer."""

    config_file: File = None
    """YAML or TOML with any of the fields below, or the config.yaml of a run; options overrule it [file]."""
    features: Count = None
    """Width of the input; default: the data set's [features]."""
    classes: Count = None
    """Number of logits; default: the data set's [classes]."""
    data_dir: Folder = None
    """Where prepared data lie; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder]."""
    config: OmitArgPrefixes[Config] = DEFAULTS.config
    """The network; what concerns training alone has no effect here."""

    def run(self) -> None:
        """Print the table."""
        from vgjax.command.printing import print_network
        from vgjax.network.model import describe
        from vgjax.training.checks import check_names

        for name in ("features", "classes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value} is not allowed; allowed: whole numbers from 1")
        check_names(self.config)
        features, classes = self.features, self.classes
        if not (features and classes):
            own = _sizes(self.config.dataset, self.data_dir)
            features, classes = features or own[0], classes or own[1]
        print_network(describe(self.config, features, classes), features)


def _sizes(dataset: Any, data_dir: Path | None) -> tuple[int, int]:
    from vgjax.data.catalogue import DATASETS, DataUnavailable, load

    if row := DATASETS.get(str(dataset)):
        return row.features, row.classes
    try:
        found = load(dataset, data_dir)
    except DataUnavailable:
        raise ValueError(f"data set {dataset!r} is not at hand; say --features and --classes") from None
    return found.train_inputs.shape[1], found.classes
