"""The command `vgjax`: parse the command line, run the subcommand, and report an error in one line.

Results go to stdout, progress and errors to stderr. A subcommand is a dataclass: its fields are the options, their
docstrings the help, and its `run` does the work. Modules that need JAX, NumPy or pandas are imported inside `run`, so
that `--help` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Union

import tyro
from tyro.conf import subcommand

from vgjax.command.clinic import Clinic
from vgjax.command.data import Data
from vgjax.command.diagnose import Diagnose
from vgjax.command.list import List
from vgjax.command.options import DEFAULTS, FAILED
from vgjax.command.predict import Predict
from vgjax.command.rerun import Rerun
from vgjax.command.show import Show
from vgjax.command.stopping import exit_status
from vgjax.command.sweep import Sweep
from vgjax.command.train import Train
from vgjax.files import read_sealed
from vgjax.settings import in_one_line, read_settings, seeds_as_words

BAD_INPUT = 2
DESCRIPTION = "See how the gradient signal fares, layer by layer: measured, predicted by theory, and explained."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
      argv: the arguments; None: those of the process.

    Returns:
      The exit status: 0; 2 for bad input; 130 or 143 after SIGINT or SIGTERM; 1 if `rerun` found a difference, or
      `diagnose` a finding that --fail-on names, or if the machine is too small or a process of the job is gone.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show σ or × shows a question mark
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:  # its arguments, if any: the message, the signal's number
        message = stop.args[0] if stop.args else "stopped"
        number = stop.args[1] if len(stop.args) > 1 else signal.SIGINT
        return _fail(message, exit_status(number))
    except BrokenPipeError:  # as in `vgjax list | head`: nobody reads the rest
        return 0
    except ConnectionError as error:  # a process of the job is gone
        return _fail(f"vgjax: {error}", FAILED)
    except OSError as error:
        return _fail(f"vgjax: {error.filename or 'file'}: {error.strerror or error}", BAD_INPUT)
    except ValueError as error:
        return _fail(f"vgjax: {error}", BAD_INPUT)
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Out of memory" not in str(error):
            raise
        return _fail("vgjax: too large for this machine; allowed: a smaller network, batch or number of lanes", FAILED)


def _run(argv: list[str]) -> int:
    try:
        parse(argv).run()
        return 0
    except SystemExit as done:  # tyro has printed --help, or a subcommand ends with its own status
        return int(done.code or 0)


def _fail(message: str, status: int) -> int:
    """Print the message in one line on stderr; the result is the status."""
    print(" ".join(message.splitlines()), file=sys.stderr)
    return status


def parse(argv: list[str]) -> Any:
    """The subcommand of a command line, with its options; those not given come from the config file, if there is one.

    Raises:
      ValueError: an option, a value or the config file is not allowed.
      SystemExit: --help was given, and the help is printed.
    """
    file = _config_file(argv)
    defaults = read_settings(file) if file else DEFAULTS
    config, hypers, seeds = defaults.config, defaults.hypers[0], seeds_as_words(defaults.seeds)
    commands: Any = Union[  # noqa: UP007  (values, not a type)
        Annotated[Train, subcommand("train", default=Train(config=config, hypers=hypers, seeds=seeds))],
        Annotated[Sweep, subcommand("sweep")],
        Annotated[Predict, subcommand("predict", default=Predict(config=config, hypers=hypers))],
        Annotated[Show, subcommand("show", default=Show(config=config))],
        Annotated[Diagnose, subcommand("diagnose")],
        Annotated[Rerun, subcommand("rerun")],
        Annotated[Data, subcommand("data")],
        Annotated[Clinic, subcommand("clinic")],
        Annotated[List, subcommand("list")],
    ]
    box = io.StringIO()  # tyro prints its errors on sys.stderr, in a box of several lines
    try:
        with contextlib.redirect_stderr(box):
            command = tyro.cli(commands, args=argv, prog="vgjax", description=DESCRIPTION)
    except SystemExit as done:
        if done.code:
            raise ValueError(in_one_line(box.getvalue())) from None
        raise
    if isinstance(command, Train):
        given = {word.partition("=")[0].strip("-").replace("-", "_") for word in argv if word.startswith("--")}
        new = {name: value for name, value in command.hypers._asdict().items() if name in given}
        command = replace(command, settings=tuple(setting._replace(**new) for setting in defaults.hypers))
    return command


def _config_file(argv: list[str]) -> Path | None:
    """The config file that gives the options their defaults: --config-file, or with --resume the config of the run.

    tyro needs the defaults before it parses, so these options are read from the words first.
    """
    if argv[:1] not in (["train"], ["predict"], ["show"]):
        return None
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config-file", "--config_file", nargs="?", type=Path)
    first.add_argument("--out", nargs="?", type=Path)
    first.add_argument("--resume", nargs="?", const=True)  # takes no value; tyro refuses one
    known, _ = first.parse_known_args(argv)
    if known.resume and known.out and not known.config_file and (known.out / "config.yaml").is_file():
        own = known.out / "config.yaml"
        read_sealed(own)  # refuses a damaged file
        return own
    return known.config_file
