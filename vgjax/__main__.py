"""The process of `vgjax` and of `python -m vgjax`: a signal ends it with one line and no traceback."""

import os
import sys
from contextlib import suppress

from vgjax.command.stopping import stop_at_once


def main() -> None:
    """Run `vgjax.command.cli.main` and end the process with its exit status."""
    with stop_at_once():
        from vgjax.command.cli import main  # imported here: a signal may come while the imports run

        status = main()
        with suppress(OSError):  # main has already reported a full disk or a closed pipe
            sys.stdout.flush()
        # os._exit skips Python's own shutdown, which waits for the chunk that JAX is still computing, and which answers
        # a signal with a traceback. It can go when JAX can cancel a computation that it has started.
        os._exit(status)


if __name__ == "__main__":
    main()
