"""Files that are written completely or not at all, and whose seal shows whether a bit has changed."""

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
    """Give a temporary name to write to; at the end the file is renamed to `path`, so `path` is never half written.

    Args:
      path: the file; an older version stays until the new one replaces it.

    Raises:
      OSError: it cannot be written; the error names `path`.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with named(path):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk, half a file takes space
        raise


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Put `path` into the system's errors, and turn a library's error that quotes one (full disk) into an OSError."""
    try:
        yield
    except Exception as error:
        known = error.errno if isinstance(error, OSError) else None
        if code := known or next((code for code in errno.errorcode if os.strerror(code) in str(error)), None):
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def write_sealed(path: Path, content: bytes | memoryview) -> None:
    """Write a file whose last line is the SHA-256 of the rest; readers of YAML and HDF5 ignore that line."""
    with whole(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.write(_SEAL.format(hashlib.sha256(content).hexdigest()).encode())


def read_sealed(path: Path) -> bytes:
    """The content that `write_sealed` wrote, without the seal.

    Raises:
      ValueError: the content does not fit the seal, or there is no seal.
      OSError: it cannot be read.
    """
    found = path.read_bytes()
    content, seal = found[:-_SEAL_BYTES], found[-_SEAL_BYTES:]
    if seal != _SEAL.format(hashlib.sha256(content).hexdigest()).encode():
        raise ValueError(f"{path} is damaged, or of another version: its last line is not the SHA-256 of the others")
    return content
