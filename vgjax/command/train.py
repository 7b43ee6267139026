"""The subcommands of `vgjax` that train, a class each: its fields are the options, their docstrings the help.

Rooms that need JAX are imported by the command that needs them, so that `--help` does not wait for it.
"""

from __future__ import annotations

import functools
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Suppress, arg

from vgjax.command.options import DEFAULTS, Count, Distributed, File, Folder, cores_are_devices, plain_name
from vgjax.command.stopping import options_as_typed, saying_how_to_go_on
from vgjax.config import Config, Hypers, check_hypers
from vgjax.names import text_of
from vgjax.settings import parse_seeds


@dataclass(frozen=True)
class Train:
    """Train every lane (hypers × seeds × replicas) as one compiled program, and record how its gradients fare."""

    config_file: File = None
    """YAML or TOML with any of the fields below, or the config.yaml of a run; options overrule it [file]."""
    seeds: Annotated[tuple[str, ...], arg(metavar="N | SEED SEED …")] = ("1",)
    """How many, counted from 0; or which: two or more, or one and a comma (`--seeds 7,`) [seeds]."""
    out: Folder = None
    """Folder of the run; default: runs/DATASET-ACTIVATION-INITIALIZER-TIME [folder]."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with the run in --out from its last checkpoint; its config need not be repeated."""
    tensorboard: Literal["all", "first", "none"] = "all"
    """Lanes that are written to TensorBoard; none: no train.log either, and no wait for TensorFlow."""
    data_dir: Folder = None
    """Where prepared data lie; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder]."""
    manual_dir: Folder = None
    """Original files of the data set, as an alternative to downloading [folder]."""
    shard: Literal["auto", "lanes", "batch"] = "auto"
    """What the devices share; auto: the lanes where they divide, else the batch."""
    devices: Count = None
    """How many devices to use; default: all, and every core of a CPU is one [devices]."""
    distributed: Distributed = None
    """Be one process of a job: detected (Slurm, Open MPI, Kubernetes, Cloud TPU), or given by process 0's address."""
    config: OmitArgPrefixes[Config] = DEFAULTS.config
    """What changes shapes or the compiled program."""
    hypers: OmitArgPrefixes[Hypers] = DEFAULTS.hypers[0]
    """Numbers, which do not; where a config file has several settings, an option replaces the number in all of them."""
    settings: Suppress[tuple[Hypers, ...]] = ()  # the file's, with the options in them

    def run(self) -> None:
        """Train, and say what came of it."""
        seeds, settings = parse_seeds(self.seeds), self.settings or (self.hypers,)
        if self.resume and not (self.out and (self.out / "config.yaml").is_file()):
            problem = f"{self.out} holds no run" if self.out else "no --out"
            raise ValueError(f"--resume: {problem}; allowed: --out DIR, the folder of a run")
        cores_are_devices()
        from vgjax import analysis, figures
        from vgjax.command.printing import print_empty_classes, print_run, print_signals
        from vgjax.command.progress import ProgressBar
        from vgjax.command.stopping import stop_after_chunk, stop_at_once
        from vgjax.data.catalogue import empty_classes, load
        from vgjax.training import parallel
        from vgjax.training.checks import check_names
        from vgjax.training.loop import run
        from vgjax.training.processes import joined

        for setting in settings:
            check_hypers(setting)
        check_names(self.config)
        folder = self.out or new_folder(self.config)
        how = {name: getattr(self, name) for name in ("resume", "tensorboard", "shard", "devices")}
        find = functools.partial(load, self.config.dataset, self.data_dir, self.manual_dir)
        advice = functools.partial(self._advice, folder)
        with joined(self.distributed):
            dataset = parallel.on_first_process(find) or find()  # which may have to be prepared, once
            with (
                saying_how_to_go_on(advice, folder / "config.yaml"),
                ProgressBar() as bar,
                stop_after_chunk(advice) as check,
            ):

                def landed(part: Any, total_steps: int) -> None:
                    if parallel.is_first():
                        bar.update(part, total_steps)
                    check()

                result = run(self.config, settings, seeds, dataset=dataset, folder=folder, progress=landed, **how)
        if not parallel.is_first():
            return
        with stop_at_once(advice):
            print_run(result.history, folder, self.tensorboard != "none")
            print_empty_classes(empty_classes(dataset, self.config.holdout), dataset.classes)
            if analysis.root_mean_squares(result.history):
                print_signals(signals := analysis.signals(result.history, dataset))
                print(f"figure      {figures.write_signal(folder / 'signal', signals, analysis.SIGNALS)}")

    def _advice(self, folder: Path) -> str:
        """How to go on after an interruption: what the folder does not know is to be said again."""
        from vgjax.training.parallel import is_first

        if not is_first():
            return "stopped"
        if not (folder / "config.yaml").exists():
            return "stopped; nothing was written"
        words = options_as_typed(self, "tensorboard", "data_dir", "manual_dir", "shard", "devices")
        return f"stopped; go on with: {shlex.join(['vgjax', 'train', '--resume', '--out', str(folder), *words])}"


def new_folder(config: Config) -> Path:
    names = [plain_name(text_of(named)) for named in (config.dataset, config.activation, config.initializer)]
    return Path("runs", "-".join([*names, time.strftime("%Y%m%d-%H%M%S")]))
