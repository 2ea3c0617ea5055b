"""What the tests of settings share."""

import json

import pytest
from minimal_configs import MINIMAL, PIPELINE


@pytest.fixture
def write(tmp_path):
    """Write a configuration to a file, and return its path."""

    def write(data, name="mine.yaml"):
        text = data if isinstance(data, str) else json.dumps(data)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def minimal(write):
    return write(MINIMAL)


@pytest.fixture
def pipeline_folder(tmp_path):
    """Write what a pipeline's folder says without its weights, and return options that name it."""

    def write(kind, denoisers, **index):
        index |= {"_class_name": kind} | {name: ["diffusers", "x"] for name in denoisers}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        for name, settings in denoisers.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "config.json").write_text(json.dumps({"_class_name": "Denoiser"} | settings))
        return [*PIPELINE, "--model.pretrained", str(tmp_path)]

    return write
