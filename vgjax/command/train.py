"""`vgjax train`: train networks and record their gradients."""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Suppress, arg

from vgjax.command.options import (
    DEFAULTS,
    ConfigFile,
    DataDir,
    Devices,
    Distributed,
    Folder,
    ManualDir,
    Shard,
    safe_name,
    use_cores_as_devices,
)
from vgjax.command.stopping import add_advice, changed_options, stop_after_chunk, stop_at_once
from vgjax.config import Config, Hypers, check_hypers
from vgjax.names import text_of
from vgjax.settings import parse_seeds

if TYPE_CHECKING:
    import xarray as xr

    from vgjax.data.dataset import Dataset


@dataclass(frozen=True)
class Train:
    """Train every lane (hypers × seeds × replicas) in one compiled program, and record the gradients of each layer."""

    config_file: ConfigFile = None
    seeds: Annotated[tuple[str, ...], arg(metavar="N | SEED SEED …")] = ("1",)
    """How many, counted from 0; or which: two or more, or one and a comma (`--seeds 7,`) [seeds]."""
    out: Folder = None
    """Folder of the run; default: runs/DATASET-ACTIVATION-INITIALIZER-TIME [folder]."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with the run in --out from its last checkpoint; its config need not be repeated."""
    tensorboard: Literal["all", "first", "none"] = "all"
    """Lanes that are written to TensorBoard; none: train.log is not written either, and TensorFlow is not imported."""
    data_dir: DataDir = None
    manual_dir: ManualDir = None
    shard: Shard = "auto"
    devices: Devices = None
    distributed: Distributed = None
    config: OmitArgPrefixes[Config] = DEFAULTS.config
    """Settings that change shapes or the compiled program."""
    hypers: OmitArgPrefixes[Hypers] = DEFAULTS.hypers[0]
    """Numbers that may differ from lane to lane; an option replaces the number in every setting of a config file."""
    settings: Suppress[tuple[Hypers, ...]] = ()  # those of the config file, with the options put in

    def run(self) -> None:
        """Train, print the results and draw the figure."""
        seeds, settings = parse_seeds(self.seeds), self.settings or (self.hypers,)
        if self.resume and not (self.out and (self.out / "config.yaml").is_file()):
            problem = f"{self.out} holds no run" if self.out else "no --out"
            raise ValueError(f"--resume: {problem}; allowed: --out DIR, the folder of a run")
        use_cores_as_devices()
        from vgjax.data.catalogue import load
        from vgjax.training import parallel
        from vgjax.training.checks import check_names
        from vgjax.training.processes import joined

        for setting in settings:
            check_hypers(setting)
        check_names(self.config)
        folder = self.out or new_folder(self.config)
        load_data = functools.partial(load, self.config.dataset, self.data_dir, self.manual_dir)
        advice = functools.partial(self._advice, folder)
        with joined(self.distributed):
            dataset = (
                parallel.on_first_process(load_data) or load_data()
            )  # the first process may have to prepare the data
            history = self._train(settings, seeds, dataset, folder, advice)
        if parallel.is_first():
            with stop_at_once(advice):
                self._report(history, dataset, folder)

    def _train(
        self, settings: tuple[Hypers, ...], seeds: Any, dataset: Dataset, folder: Path, advice: Callable[[], str]
    ) -> xr.Dataset:
        """Train with a progress bar; a signal stops it after a chunk."""
        from vgjax.command.progress import ProgressBar
        from vgjax.training import parallel
        from vgjax.training.loop import run

        how = {name: getattr(self, name) for name in ("resume", "tensorboard", "shard", "devices")}
        with add_advice(advice, folder / "config.yaml"), ProgressBar() as bar, stop_after_chunk(advice) as check:

            def after_chunk(part: xr.Dataset, total_steps: int) -> None:
                if parallel.is_first():
                    bar.update(part, total_steps)
                check()

            return run(
                self.config, settings, seeds, dataset=dataset, folder=folder, progress=after_chunk, **how
            ).history

    def _report(self, history: xr.Dataset, dataset: Dataset, folder: Path) -> None:
        """Print the results, and compare the signals with the prediction if the RMS values are recorded."""
        from vgjax import analysis, figures
        from vgjax.command.printing import print_empty_classes, print_run, print_signals
        from vgjax.data.catalogue import empty_classes

        print_run(history, folder, self.tensorboard != "none")
        print_empty_classes(empty_classes(dataset, self.config.holdout), dataset.classes)
        if analysis.root_mean_squares(history):
            signals = analysis.signals(history, dataset)
            print_signals(signals)
            print(f"figure      {figures.write_signal(folder / 'signal', signals, analysis.SIGNALS)}")

    def _advice(self, folder: Path) -> str:
        """How to go on after an interruption: with --resume, and the options that the folder does not hold."""
        from vgjax.training.parallel import is_first

        if not is_first():
            return "stopped"
        if not (folder / "config.yaml").exists():
            return "stopped; nothing was written"
        words = changed_options(self, "tensorboard", "data_dir", "manual_dir", "shard", "devices")
        return f"stopped; go on with: {shlex.join(['vgjax', 'train', '--resume', '--out', str(folder), *words])}"


def new_folder(config: Config) -> Path:
    """A folder for a run without --out, named after its config and the time."""
    names = [safe_name(text_of(named)) for named in (config.dataset, config.activation, config.initializer)]
    return Path("runs", "-".join([*names, time.strftime("%Y%m%d-%H%M%S")]))
