"""Files as Fashion-MNIST's, of made up pictures."""

import gzip
from pathlib import Path

import numpy as np


def write(folder: Path, count: int = 600) -> Path:
    """Write the four files of the data set with so many pictures each, every class as often."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.uint8) % 10
    pictures = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
    for i, label in enumerate(labels):  # a bright bar a class
        pictures[i, 2 + 2 * label : 4 + 2 * label] = 220
    for prefix in ("train", "t10k"):
        header = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pictures.tobytes()))
        header = bytes([0, 0, 8, 1]) + np.array([count], ">u4").tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))
    return folder
