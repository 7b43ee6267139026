"""The other subcommands of `vgjax`: what theory, a data set, an initializer or a run's result has to say.

Rooms that need JAX are imported by the command that needs them, so that `--help` does not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from vgjax.command.options import DEFAULTS, File, Folder
from vgjax.config import Config, Hypers, check_hypers

MOST_DRAWS = 100_000


@dataclass(frozen=True)
class Predict:
    """Say, without training, how the signal ought to fare at step 0: mean-field theory, layer by layer, with a band."""

    config_file: File = None
    """YAML or TOML with any of the fields below, or the config.yaml of a run; options overrule it [file]."""
    out: Annotated[Path, arg(metavar="NAME")] = Path("prediction")
    """Where NAME.png, NAME.svg and NAME.csv go, and NAME.json, which says how they were made [file without suffix]."""
    draws: Annotated[int, arg(metavar="INT")] = 64
    """Random networks whose spread is the band [networks]."""
    data_dir: Folder = None
    """Where prepared data lie; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder]."""
    manual_dir: Folder = None
    """Original files of the data set, as an alternative to downloading [folder]."""
    config: OmitArgPrefixes[Config] = DEFAULTS.config
    """The network, its data and batch size; what concerns training alone has no effect here."""
    hypers: OmitArgPrefixes[Hypers] = DEFAULTS.hypers[0]
    """Of these, σ_w and σ_b matter."""

    def run(self) -> None:
        """Predict, print and draw."""
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
