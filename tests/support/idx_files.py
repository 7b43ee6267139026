"""IDX files, written independently of the package."""

from __future__ import annotations

import gzip
import struct

import numpy as np

FOUR = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def bytes_of_idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, arrays, names=FOUR, zipped=False):
    folder.mkdir(exist_ok=True)
    for name, array in zip(names, arrays, strict=True):
        content = bytes_of_idx(array)
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return folder
