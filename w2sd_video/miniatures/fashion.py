"""Fashion-MNIST: real pictures of clothes in ten classes, which nobody here drew (Xiao et al., arXiv 1708.07747, MIT).

Training reads the data set from a folder, as Debian's package dataset-fashion-mnist or its authors have it. A thousand
of its test pictures come with the weights, to compare samples with.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from w2sd_video.miniatures import folder_of

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
"""Names of the classes, in the order of the data set's numbers."""
TWO = ("trouser", "sneaker")
"""The classes of the unbalanced pair: the first is in the majority."""
SIZE = 32
"""Height and width of a picture, the data set's 28 pixels with a margin."""
FEATURES = 1280
"""Of a picture, by EfficientNet-Lite0."""
JUDGE = "fashion_judge"
"""Folder of the judge, and of real pictures."""
_FILES = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_PICTURE = 28


def read_pictures(folder: Path | None, training: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Read the data set.

    Args:
        folder: with its four files, packed (.gz) or not.
        training: the 60,000 pictures for training, or the 10,000 of the test.

    Returns:
        Pictures uint8 (n, 28, 28) and their classes uint8 (n,).

    Raises:
        FileNotFoundError: no folder, or none of the data set; the message says where to get it.
        ValueError: a file that is damaged.
    """
    if folder is None:
        raise FileNotFoundError(f"the pictures of Fashion-MNIST are needed: {_ADVICE}")
    parts = [_read(folder, name) for name in _FILES[training]]
    if parts[0].ndim != 3 or parts[0].shape[1:] != (_PICTURE, _PICTURE) or parts[1].shape != parts[0].shape[:1]:
        raise ValueError(
            f"{folder}: the files hold {parts[0].shape} and {parts[1].shape}, not pictures and their classes"
        )
    return parts[0], parts[1]


_ADVICE = (
    "apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb DIR, "
    "and name DIR/usr/share/datasets/fashion-mnist with --fashion-mnist"
)


def _read(folder: Path, name: str) -> np.ndarray:
    packed, plain = folder / f"{name}.gz", folder / name
    if not packed.is_file() and not plain.is_file():
        raise FileNotFoundError(f"{folder} holds no {name}.gz: {_ADVICE}")
    path = packed if packed.is_file() else plain
    try:
        content = gzip.decompress(path.read_bytes()) if path is packed else path.read_bytes()
        axes = content[3]  # the format idx: two zeros, a type, the number of axes, their lengths, the values
        shape = np.frombuffer(content, ">u4", axes, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise ValueError(f"{path} is damaged: {error}; get it again") from error


def as_frames(pictures: np.ndarray) -> np.ndarray:
    """Grey pictures uint8 (n, 28, 28) to uint8 (n, 32, 32, 3), with a black margin."""
    edge = (SIZE - _PICTURE) // 2
    return np.repeat(np.pad(pictures, ((0, 0), (edge, edge), (edge, edge)))[..., None], 3, -1)


@cache
def real_pictures() -> tuple[np.ndarray, np.ndarray]:
    """Pictures of the test uint8 (1000, 32, 32, 3), a hundred of each class, and their classes (1000,).

    Raises:
        FileNotFoundError: they are not there.
    """
    with np.load(folder_of(JUDGE) / "real.npz") as stored:
        return as_frames(stored["pictures"]), stored["labels"]


def picture(prompt: str, seed: int) -> np.ndarray:
    """A picture of the test, uint8 (1, 32, 32, 3), of the class that a prompt names, or of one of several with "or"."""
    rng = np.random.default_rng(seed)
    pictures, labels = real_pictures()
    name = str(rng.choice(prompt.split(" or ")))
    return pictures[rng.choice(np.flatnonzero(labels == parse(name)))][None]


def parse(prompt: str) -> int:
    """Return the number of a class by its name.

    Raises:
        ValueError: no such class.
    """
    if prompt not in CLASSES:
        raise ValueError(f"unknown class {prompt!r}; known are {', '.join(CLASSES)}")
    return CLASSES.index(prompt)


@cache
def load_judge(folder: Path | None = None) -> nn.Linear:
    """The judge: a linear layer over the features of EfficientNet-Lite0, on the CPU.

    Raises:
        FileNotFoundError: it is not there.
    """
    from safetensors.torch import load_file

    judge = nn.Linear(FEATURES, len(CLASSES))
    judge.load_state_dict(load_file((folder or folder_of(JUDGE)) / "model.safetensors"))
    return judge.float().eval().requires_grad_(False)


def log_probabilities(features: np.ndarray) -> Tensor:
    """Logarithms of the probability of each class (n, 10), by the features of pictures (n, 1280)."""
    return load_judge()(torch.from_numpy(features).float()).double().log_softmax(-1)


def wanted(prompts: Sequence[str]) -> Tensor:
    """The numbers of the classes that prompts name, (n,)."""
    return torch.tensor([parse(prompt) for prompt in prompts])
