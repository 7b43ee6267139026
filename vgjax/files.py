"""Files that are there whole or not at all, and that show it when a bit of them has changed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_SEAL = "# sha256 {}\n"
_SEAL_BYTES = len(_SEAL.format("0" * 64))


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give the name under which to write a file: with its own name it is there whole or not at all.

    Args:
      path: the file; what was there before stays until it is replaced.

    Raises:
      OSError: it cannot be written; the error has its name.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with named(path):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()  # where the disk is full, half a file is in the way
        raise


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the system get this path; so do libraries' own that tell of one, of a full disk say, in many lines."""
    try:
        yield
    except Exception as error:
        known = error.errno if isinstance(error, OSError) else None
        if code := known or next((code for code in errno.errorcode if os.strerror(code) in str(error)), None):
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def write_sealed(path: Path, content: bytes | memoryview) -> None:
    """Write a file whose last line is the SHA-256 of what is above it; to YAML a comment, to HDF5 nothing."""
    with whole(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.write(_SEAL.format(hashlib.sha256(content).hexdigest()).encode())


def read_sealed(path: Path) -> bytes:
    """What `write_sealed` wrote.

    Raises:
      ValueError: a bit of it has changed, or it was never sealed.
      OSError: it cannot be read.
    """
    found = path.read_bytes()
    content, seal = found[:-_SEAL_BYTES], found[-_SEAL_BYTES:]
    if seal != _SEAL.format(hashlib.sha256(content).hexdigest()).encode():
        raise ValueError(f"{path} is damaged, or of another version: its last line is not the SHA-256 of the others")
    return content
