"""The process `vgjax`, or `python -m vgjax`: whatever it is at, a signal ends it with one line."""

import os
import sys
from contextlib import suppress

from vgjax.command.stopping import stop_at_once


def main() -> None:
    """The command `vgjax.command.cli.main`, whose rooms take a while to import."""
    with stop_at_once():
        from vgjax.command.cli import main

        status = main()
        with suppress(OSError):  # a full device or closed pipe, said by main; its buffer still holds the text
            sys.stdout.flush()
        os._exit(status)  # Python's way out waits for the chunk that was begun, and a signal meanwhile is a traceback


if __name__ == "__main__":
    main()
