"""`python -m vgjax`: the command, where it is not on the path."""

from vgjax.cli import main

raise SystemExit(main())
