"""Latents that are kept in a file before they are decoded, so that a decoding that fails costs no sampling.

Each pipeline decodes in its own way (scaling, unpacking, in chunks). So what is kept is what the scheduler's last step
returned, and to decode it the pipeline is called again for two steps, whose results are replaced by it. What the VAE is
given must then be, bit for bit, what it was given before; if it is not, the latents are of no use and sampled anew.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from w2sd_video.settings.schema import RenderConfig
from w2sd_video.writing import whole

ENDING = ".safetensors"


class LatentsDiffer(Exception):  # noqa: N818
    """A pipeline does not decode what it decoded when latents were kept."""


@dataclass(frozen=True)
class Kept:
    """The latents of one call of a pipeline.

    Attributes:
        last: what the scheduler's last step returned.
        decoded: what the VAE was first given.
        about: plain data that was kept with them.
    """

    last: Any
    decoded: Any
    about: dict[str, Any] = field(default_factory=dict)


def read_kept(file: Path) -> Kept | None:
    """Return what a file keeps; None if there is none, or none that is whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata()
            last, decoded = (
                tensors.get_tensor(name).permute(json.loads(metadata[f"axes of {name}"]))
                for name in ("last", "decoded")
            )
            return Kept(last, decoded, json.loads(metadata["about"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
        return None


@contextmanager
def keeping(pipe: Any, file: Path, about: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Keep the latents of the call inside the block before its VAE first decodes; of a pipeline without VAE none.

    Args:
        pipe: a diffusers pipeline.
        file: where they go; replaced if it is there.
        about: returns plain data to keep with them, when they are kept.
    """
    last: list[Any] = []

    def remember(result: Any) -> Any:
        last[:] = [_latents_in(result)]
        return result

    def before_decoding(latents: Any) -> None:
        if last and latents.isfinite().all():
            _write(file, Kept(last[0], latents, dict(about())))

    with _with_step_results(pipe, remember), _before_first_decoding(pipe, before_decoding):
        yield


@contextmanager
def decoding(pipe: Any, kept: Kept) -> Iterator[None]:
    """Have the call inside the block, made with `config_to_decode`, decode latents that were kept.

    Raises:
        LatentsDiffer: before anything is decoded.
    """
    import torch

    differs = False

    def answer(result: Any) -> Any:
        latents = kept.last.to(_latents_in(result).device)
        if isinstance(result, tuple):
            return (latents, *result[1:])
        result.prev_sample = latents
        return result

    def compare(latents: Any) -> None:
        nonlocal differs
        is_alike = (latents.dtype, latents.stride()) == (kept.decoded.dtype, kept.decoded.stride())
        differs = not (is_alike and torch.equal(latents.cpu(), kept.decoded))
        if differs:
            raise LatentsDiffer

    with _with_step_results(pipe, answer), _before_first_decoding(pipe, compare):
        try:
            yield
        except Exception as error:
            if differs and not isinstance(error, LatentsDiffer):  # whatever it was turned into on its way
                raise LatentsDiffer from error
            raise


def config_to_decode(config: RenderConfig) -> RenderConfig:
    """Return a configuration with which a pipeline decodes soon: of few steps, none of them reflected.

    It takes two, for some pipelines have a way of their own to take a single one.
    """
    return replace(config, steps=min(2, config.steps), reflection_steps=0, autoguidance=0.0)


def _write(file: Path, kept: Kept) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    tensors, metadata = {}, {"about": json.dumps(kept.about)}
    for name in ("last", "decoded"):
        tensor = getattr(kept, name).detach().cpu()
        axes = _axes_in_memory(tensor)
        # As they lie in memory (channels last, for example), for networks round by that; and back when it is read.
        tensors[name] = tensor.permute(axes).contiguous().clone()
        metadata[f"axes of {name}"] = json.dumps([axes.index(axis) for axis in range(tensor.ndim)])
    with whole(file) as part:
        save_file(tensors, part, metadata=metadata)


def _axes_in_memory(tensor: Any) -> list[int]:
    """Return the axes of a tensor by their strides, the largest first."""
    return sorted(range(tensor.ndim), key=lambda axis: (-tensor.stride(axis), axis))


def _latents_in(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result.prev_sample


@contextmanager
def _with_step_results(pipe: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    """Change what the class of a pipeline's scheduler returns of its steps; the object may be copied for each call."""
    kind = type(pipe.scheduler)
    original, is_own = kind.step, "step" in vars(kind)

    @functools.wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return change(original(self, *args, **kwargs))

    kind.step = step
    try:
        yield
    finally:
        if is_own:
            kind.step = original
        else:
            del kind.step


@contextmanager
def _before_first_decoding(pipe: Any, do: Callable[[Any], None]) -> Iterator[None]:
    """Do something with the latents that a pipeline's VAE is first given to decode."""
    vae = getattr(pipe, "vae", None)
    if vae is None or "decode" in vars(vae):  # which something else has replaced
        yield
        return
    original, is_first = vae.decode, True

    @functools.wraps(original)
    def decode(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_first
        if is_first:
            is_first = False
            do(args[0] if args else kwargs["z"])
        return original(*args, **kwargs)

    vae.decode = decode
    try:
        yield
    finally:
        del vae.decode
