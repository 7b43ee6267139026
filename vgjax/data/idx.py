"""Data sets in MNIST's own format: a folder of four IDX files."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from vgjax.data.dataset import Dataset


def idx_folder(folder: str | os.PathLike[str]) -> Dataset:
    """The four files of MNIST's format in a folder, gzipped or not, under MNIST's names (t10k- or test-).

    Raises:
      ValueError: a file is missing or damaged, or the files do not belong together. A changed pixel in a file that is
        not gzipped cannot be seen, as the format has no checksum; but a run does not go on with other files.
    """
    folder = Path(folder)
    (train, train_labels), (test, test_labels) = _idx_split(folder, "train"), _idx_split(folder, "t10k|test")
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(f"{folder}: training images are {train.shape[1:]}, test images {test.shape[1:]}")
    classes = 1 + int(max(train_labels.max(), test_labels.max()))
    flat, flat_test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    digest = hashlib.sha256()
    for array in (flat, train_labels, flat_test, test_labels):
        digest.update(array.tobytes())
    shape, source = train.shape[1:], f"IDX files in {folder}, SHA-256 {digest.hexdigest()[:16]}"
    return Dataset(str(folder), flat, train_labels, flat_test, test_labels, classes, shape, source)


def _idx_split(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and int32 labels of one split."""
    images, labels = (_read_idx(_idx_file(folder, prefix, kind)) for kind in ("images", "labels"))
    if images.ndim < 2 or labels.ndim != 1 or 0 in images.shape or len(images) != len(labels):
        name = prefix.split("|")[0]
        raise ValueError(f"{folder}: {name} images {images.shape} and labels {labels.shape} do not belong together")
    return images, labels.astype(np.int32)


def _idx_file(folder: Path, prefix: str, kind: str) -> Path:
    pattern = re.compile(rf"({prefix})-{kind}[-.]idx\d[-.]ubyte(\.gz)?")
    found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    if not found:
        name = f"{prefix.split('|')[0]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
        raise ValueError(f"{folder} is not a folder of IDX files: it has no {name} and no {name}.gz")
    return found[0]


def _read_idx(path: Path) -> np.ndarray:
    """The bytes of an IDX file: 00 00 08 (unsigned bytes), rank, big-endian sizes, content."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cannot be read: {error}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes: it begins with {content[:3].hex(' ')}, not 00 00 08")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if len(content) >= start else None
    size = start if shape is None else start + math.prod(shape)
    if shape is None or len(content) != size:
        raise ValueError(f"{path} is damaged: {len(content)} bytes, where its header announces {size}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
