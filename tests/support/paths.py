"""Where the repository and the helpers of the tests are."""

from pathlib import Path

SUPPORT = Path(__file__).parent
TOP = SUPPORT.parent.parent
