"""Writing pipelines as the folders that `from_pretrained` loads, for the package to hold."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin


def save_pipeline(folder: Path, pipe: DiffusionPipeline, **second_denoisers: ModelMixin) -> None:
    """Write a pipeline and second denoisers in half precision, but for the text encoder, which would load as such."""
    for name in ("vae", "unet", "transformer", "motion_adapter"):
        if name in pipe.components:
            pipe.components[name].to(torch.float16)
    pipe.save_pretrained(folder)
    for name, denoiser in second_denoisers.items():
        denoiser.to(torch.float16).save_pretrained(folder / name)


def forget_origin(folder: Path) -> None:
    """Drop the paths of the checkpoints, which diffusers notes in its configs, and let everyone read the weights."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
