"""How the command refuses: run in this process, with what it says and leaves looked at."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import inputs
import pytest
from hypothesis import HealthCheck, settings

from vgjax.command.cli import main
from vgjax.settings import read_settings
from vgjax.training.checks import check_names

SHOW = ["show", "--features", "4", "--classes", "3", "--config-file"]  # checks a whole config
CASES: Counter[str] = Counter()


def cases(n: int) -> Any:
    """So many, the same ones every time."""
    unhurried = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    return settings(derandomize=True, max_examples=n, database=None, **unhurried)


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to an empty folder, where there is no data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VGJAX_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("VGJAX_MANUAL_DIR", raising=False)
    return tmp_path


def checked_in_python(name: str) -> None:
    """What the command does with a config file, without the command."""
    check_names(read_settings(Path(name)).config)


def counted() -> None:
    CASES[os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split(" ")[0].split("[")[0]] += 1


def emptied(room: Path) -> None:
    """What one example leaves is not there for the next; a folder with a file in it is."""
    for path in room.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (room / "there").mkdir()
    (room / "there" / "kept").write_text("as it was")


def tree(room: Path) -> dict[str, Any]:
    """Everything below a folder, with its content."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(room.rglob("*"))}


def said(argv: list[str]) -> tuple[int, str, str]:
    """Status, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv)
    return status, out.getvalue(), err.getvalue()


def refusal(room: Path, argv: list[str]) -> str:
    """What the command says as it refuses: one line that says what would be right, and nothing else happens."""
    counted()
    before = tree(room)
    status, out, err = said(argv)
    assert (status, out) == (2, ""), (argv, status, out, err)
    assert tree(room) == before, argv
    assert err.startswith("vgjax: ") and err.endswith("\n") and len(err.splitlines()) == 1, (argv, err)
    message = err.removeprefix("vgjax: ").removesuffix("\n")
    assert is_useful(message), (argv, message)
    return message


def is_useful(message: str) -> bool:
    """It says what is allowed, or which file or function is the matter; and nothing of Python's insides."""
    helps = (
        "allowed:",
        "did you mean '",
        "cannot import",
        "is not callable",
        "cannot be used: ",
        "folder of IDX files",
    )
    helps += tuple(map(os.strerror, (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)))
    of_a_file = any(f"{name}: " in message for name in ("f.yaml", "f.toml", "g.yaml"))
    inside = (
        "Traceback",
        "unpack",
        "object is not",
        "literal",
        "no type matching",
        "NoneType",
        "has no attribute",
        "RuntimeError",
    )
    return (of_a_file or any(words in message for words in helps)) and not any(words in message for words in inside)


def taken(argv: list[str]) -> str:
    """What the command prints as it takes what is written."""
    counted()
    status, out, err = said(argv)
    assert (status, err) == (0, ""), (argv, err)
    return out


def suggested(message: str) -> str:
    """The name that a message holds for meant."""
    return message.split("did you mean '")[1].split("'")[0] if "did you mean '" in message else ""


def is_near(typo: str, name: str, message: str) -> bool:
    """Whether the name is suggested, or another that is no further from the typo."""
    found, typo = suggested(message).lstrip("-").replace("-", "_"), typo.lower()
    return bool(found) and (found == name or inputs.distance(typo, found) <= inputs.distance(typo, name) + 1)
