"""AnimateDiff's motion layers: put into a text-to-image UNet, and shared between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import nn


def motion_config(flat: UNet2DConditionModel, adapter: MotionAdapter) -> Mapping[str, Any]:
    """Return the config of the UNet that has the layers of both."""
    with init_empty_weights():
        return UNetMotionModel.from_unet2d(flat, adapter, load_weights=False).config


def with_motion(flat: UNet2DConditionModel, config: Mapping[str, Any]) -> UNetMotionModel:
    """Return a UNet with the very tensors of `flat`, and empty places for motion layers (see `share_motion`).

    `UNetMotionModel.from_unet2d` is not used for the weights: it copies them, and it leaves SDXL's `add_embedding` (the
    time ids and the pooled text) random.

    Raises:
        ValueError: `flat` is of another architecture than `config`.
    """
    with init_empty_weights():
        unet = UNetMotionModel.from_config(dict(config))
    drop_motion(unet)
    try:
        unet.load_state_dict(flat.state_dict(), assign=True)
    except RuntimeError as error:
        raise ValueError(f"the UNet does not fit the motion adapter: {error}") from error
    return unet.eval()


def drop_motion(model: UNetMotionModel | MotionAdapter) -> None:
    """Leave the places of motion layers empty, and give the memory back."""
    for block in _blocks(model):
        block.motion_modules = nn.ModuleList()


def share_motion(model: UNetMotionModel | MotionAdapter, source: UNetMotionModel | MotionAdapter) -> None:
    """Fill empty places with the motion layers of the source: the same modules, in memory once."""
    for block, source_block in zip(_blocks(model), _blocks(source), strict=True):
        if len(block.motion_modules) == 0:
            block.motion_modules = source_block.motion_modules


def same_motion(one: UNetMotionModel, other: UNetMotionModel) -> bool:
    """Return whether the motion layers of two UNets have the same weights."""
    pairs = zip(_blocks(one), _blocks(other), strict=True)
    return all(
        _equal(first_block.motion_modules.state_dict(), second_block.motion_modules.state_dict())
        for first_block, second_block in pairs
    )


def _equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def _blocks(model: Any) -> Iterator[Any]:
    """Yield every block that holds motion layers, in the same order for UNets and adapters."""
    for block in (*model.down_blocks, model.mid_block, *model.up_blocks):
        if hasattr(block, "motion_modules"):
            yield block
