"""Fashion-MNIST, read from a folder."""

import gzip

import fashion_files
import numpy as np
import pytest

from w2sd_video.miniatures import MORE_WEIGHTS, fashion
from w2sd_video.miniatures.learning.assemble import write_real_pictures


def test_pictures_are_read_packed_or_not(tmp_path):
    folder = fashion_files.write(tmp_path / "packed", 30)
    pictures, labels = fashion.read_pictures(folder)
    assert pictures.shape == (30, 28, 28) and labels.tolist() == [i % 10 for i in range(30)]
    assert (pictures[3, 8] == 220).all() and pictures.dtype == labels.dtype == np.uint8
    for file in folder.iterdir():
        (tmp_path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    again, _ = fashion.read_pictures(tmp_path, training=False)
    assert np.array_equal(again, pictures)
    frames = fashion.as_frames(pictures)
    assert frames.shape == (30, 32, 32, 3) and np.array_equal(frames[:, 2:30, 2:30, 1], pictures)
    assert frames[:, :2].max() == 0


def test_what_is_not_the_data_set_is_refused_with_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="are needed: apt-get download dataset-fashion-mnist"):
        fashion.read_pictures(None)
    with pytest.raises(FileNotFoundError, match=r"holds no train-images-idx3-ubyte\.gz: apt-get"):
        fashion.read_pictures(tmp_path)
    folder = fashion_files.write(tmp_path / "cut", 30)
    file = folder / "train-images-idx3-ubyte.gz"
    for content in (
        file.read_bytes()[:100],
        b"nothing",
        gzip.compress(b""),
        gzip.compress(bytes([0, 0, 8, 3]) + b"x" * 12),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged.*get it again"):
            fashion.read_pictures(folder)
    file.write_bytes((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(ValueError, match="not pictures and their classes"):
        fashion.read_pictures(folder)


def test_real_pictures_are_of_the_class_that_is_asked_for(tmp_path, monkeypatch):
    write_real_pictures(fashion_files.write(tmp_path / "data", 60), tmp_path, of_each=3)
    monkeypatch.setenv(MORE_WEIGHTS, str(tmp_path))
    fashion.real_pictures.cache_clear()
    try:
        pictures, labels = fashion.real_pictures()
        assert pictures.shape == (30, 32, 32, 3) and sorted(labels.tolist()) == [i // 3 for i in range(30)]
        for seed in range(5):
            sneaker = fashion.picture("sneaker", seed)
            assert sneaker.shape == (1, 32, 32, 3) and (sneaker[0, 18, 2:30] == 220).all()
        either = [(fashion.picture("trouser or sneaker", seed)[0, 18, 2:30] == 220).all() for seed in range(40)]
        assert 5 < sum(either) < 35
    finally:
        fashion.real_pictures.cache_clear()
