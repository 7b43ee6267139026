"""The command `vgjax`: a line becomes one of `commands` and runs; what is wrong with it is said in one line.

Results go to stdout, progress and errors to stderr.
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
    """The command; its exit status is 0, 2 for bad input (said in one line), or 130 or 143 (SIGINT, SIGTERM).

    And 1, where `diagnose` was to fail on a finding and there is one.

    Args:
      argv: the arguments; None: the process's own.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without σ and × shows question marks
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:  # with what to say, and the signal
        said, number = (*stop.args, signal.SIGINT)[:2] if stop.args else ("stopped", signal.SIGINT)
        return _say(said, exit_status(number))
    except BrokenPipeError:  # `vgjax list | head`: what is left to print has no reader
        return 0
    except ConnectionError as error:  # a job lost a process
        return _say(f"vgjax: {error}", FAILED)
    except OSError as error:
        return _say(f"vgjax: {error.filename or 'file'}: {error.strerror or error}", BAD_INPUT)
    except ValueError as error:
        return _say(f"vgjax: {error}", BAD_INPUT)
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Out of memory" not in str(error):
            raise
        return _say("vgjax: too large for this machine; allowed: a smaller network, batch or number of lanes", FAILED)


def _run(argv: list[str]) -> int:
    try:
        parse(argv).run()
        return 0
    except SystemExit as done:  # tyro has printed --help, or there is a finding
        return int(done.code or 0)


def _say(message: str, status: int) -> int:
    print(" ".join(message.splitlines()), file=sys.stderr)
    return status


def parse(argv: list[str]) -> Any:
    """The command of that line, config file included.

    Raises:
      ValueError: an option, a value or the config file is not allowed.
      SystemExit: help was asked for and printed.
    """
    file = _config_file(argv)
    found = read_settings(file) if file else DEFAULTS
    seeds = seeds_as_words(found.seeds)
    commands: Any = Union[  # noqa: UP007  (values, not a type)
        Annotated[Train, subcommand("train", default=Train(config=found.config, hypers=found.hypers[0], seeds=seeds))],
        Annotated[Sweep, subcommand("sweep")],
        Annotated[Predict, subcommand("predict", default=Predict(config=found.config, hypers=found.hypers[0]))],
        Annotated[Show, subcommand("show", default=Show(config=found.config))],
        Annotated[Diagnose, subcommand("diagnose")],
        Annotated[Rerun, subcommand("rerun")],
        Annotated[Data, subcommand("data")],
        Annotated[Clinic, subcommand("clinic")],
        Annotated[List, subcommand("list")],
    ]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = tyro.cli(commands, args=argv, prog="vgjax", description=DESCRIPTION)
    except SystemExit as done:
        if done.code:
            raise ValueError(in_one_line(complaint.getvalue())) from None
        raise
    if isinstance(command, Train):
        given = {word.partition("=")[0].strip("-").replace("-", "_") for word in argv if word.startswith("--")}
        new = {name: value for name, value in command.hypers._asdict().items() if name in given}
        command = replace(command, settings=tuple(setting._replace(**new) for setting in found.hypers))
    return command


def _config_file(argv: list[str]) -> Path | None:
    """The file that gives the options their defaults, needed before tyro parses: --config-file, or the run's own."""
    if argv[:1] not in (["train"], ["predict"], ["show"]):
        return None
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--config-file", "--config_file", nargs="?", type=Path)
    scan.add_argument("--out", nargs="?", type=Path)
    scan.add_argument("--resume", nargs="?", const=True)  # what is given to it is for tyro to refuse
    known, _ = scan.parse_known_args(argv)
    if known.resume and known.out and not known.config_file and (known.out / "config.yaml").is_file():
        own = known.out / "config.yaml"
        read_sealed(own)
        return own
    return known.config_file
