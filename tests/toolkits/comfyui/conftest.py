"""ComfyUI itself as a library, on the CPU, in a process that is for these tests only: see test_comfyui.py above."""

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

IN_COMFYUI = "W2SD_IN_COMFYUI"
collect_ignore_glob = [] if os.environ.get(IN_COMFYUI) else ["test_*.py"]


def load_comfyui(folder):
    """Make ComfyUI's modules importable, as its main.py would have them."""
    if importlib.util.find_spec("torchvision") is None:
        # A few of its networks import it for their forward pass, none of those that are used here.
        for name in ("torchvision", "torchvision.transforms"):
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None, is_package=True)
            module.__path__ = []
            sys.modules[name] = module
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    sys.path.insert(0, str(folder))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    import utils  # ComfyUI's, before any other of that name

    assert Path(utils.__file__).is_relative_to(folder)


if os.environ.get(IN_COMFYUI):
    load_comfyui(Path(os.environ[IN_COMFYUI]))


@pytest.fixture(autouse=True)
def inference():
    """Whatever ComfyUI executes, it executes without gradients."""
    import comfy.model_management
    import torch

    with torch.inference_mode():
        yield
    assert not comfy.model_management.processing_interrupted()
    comfy.model_management.unload_all_models()
