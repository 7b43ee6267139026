"""`vgjax predict`: what mean-field theory says of a network before it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from vgjax.command.options import DEFAULTS, ConfigFile, DataDir, ManualDir
from vgjax.config import Config, Hypers, check_hypers

MOST_DRAWS = 100_000


@dataclass(frozen=True)
class Predict:
    """Predict the signal at step 0 without training: mean-field theory, layer by layer, with a 95 % band."""

    config_file: ConfigFile = None
    out: Annotated[Path, arg(metavar="NAME")] = Path("prediction")
    """Write NAME.png, NAME.svg and NAME.csv, and NAME.json, which says how they were made [file without suffix]."""
    draws: Annotated[int, arg(metavar="INT")] = 64
    """How many random networks to draw; their spread is the band [networks]."""
    data_dir: DataDir = None
    manual_dir: ManualDir = None
    config: OmitArgPrefixes[Config] = DEFAULTS.config
    """The network, its data and batch size; options of training have no effect here."""
    hypers: OmitArgPrefixes[Hypers] = DEFAULTS.hypers[0]
    """Only σ_w and σ_b have an effect here."""

    def run(self) -> None:
        """Predict, print the table, and write the figure with its numbers."""
        from vgjax import analysis, figures
        from vgjax.command.printing import print_prediction
        from vgjax.data.catalogue import load
        from vgjax.environment import environment
        from vgjax.files import whole
        from vgjax.report import as_json
        from vgjax.settings import as_plain
        from vgjax.training.checks import check_names

        if not 2 <= self.draws <= MOST_DRAWS:
            raise ValueError(f"draws {self.draws} is not allowed; allowed: whole numbers from 2 to {MOST_DRAWS}")
        check_hypers(self.hypers)
        check_names(self.config)
        dataset = load(self.config.dataset, self.data_dir, self.manual_dir)
        predicted = analysis.prediction(self.config, self.hypers, dataset, self.draws)
        infinite = analysis.infinite_width(self.config, self.hypers, dataset)
        print_prediction(analysis.band(predicted), infinite)
        print(f"figure      {figures.write_signal(self.out, {'': analysis.band(predicted)}, analysis.SIGNALS)}")
        with whole(Path(f"{self.out}.json")) as temporary:
            made = as_plain(self.config, [self.hypers], [0], dataset.source) | {"draws": self.draws}
            temporary.write_text(as_json(made | {"environment": environment()}, indent=1) + "\n", encoding="utf-8")
