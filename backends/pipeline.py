"""Any pipeline of diffusers, with second denoisers of its own class, a ControlNet or an IP-Adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn

from w2sd_video.backends import DENOISERS, Second, register
from w2sd_video.backends.attention import check_class, set_attention
from w2sd_video.backends.loading import (
    Config,
    Memory,
    Source,
    check_same,
    check_settings,
    denoiser_config,
    filled,
    is_single_file,
    kind_of_file,
    load_file,
    load_part,
    pipeline_index,
    place,
    spare_memory,
)

_HEADS = ("num_attention_heads", "attention_head_dim")
"""What no shape of a weight tells: the same tensors may be cut into other heads."""
_SIZES = ("num_attention_heads", "num_layers", "ffn_dim")
"""What a transformer of another size may have otherwise."""
_SHARED_WITH_CONTROLNET = ("cross_attention_dim", "addition_embed_type", "joint_attention_dim", *_HEADS)
"""What a ControlNet shares with the denoiser it was made for."""


def load(
    pretrained: Source,
    *,
    weights: Mapping[str, Source | Second] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "auto",
    memory: Memory = "device",
    attention: str = "sdpa",
    variant: str | None = None,
    controlnet: Source | None = None,
    ip_adapter: Source | None = None,
    scheduler: str | None = None,
    components: Mapping[str, Source] | None = None,
    config: Source | None = None,
) -> Any:
    """Load a pipeline of diffusers, and second denoisers that share everything else with it.

    Args:
        pretrained: hub id or folder of a pipeline, or single `.safetensors` file of an SD1.5 or SDXL checkpoint.
        weights: second denoisers by name, for `Branch(weights=name)`: a hub id or folder (of a pipeline, or of the
            denoiser alone), a single file for SD1.5 and SDXL, or a module. A transformer may be of another size. For a
            two-stage model (Wan 2.2) a hub id or folder of a pipeline with both, or a pair of modules.
        dtype: None is bfloat16, and float32 on the CPU.
        device: "auto" is the accelerator if there is one.
        memory: `device` keeps all on the device; `offload` moves text encoders, denoisers and VAE there in turn, the
            denoisers together; `sequential` moves layer by layer and is slow.
        attention: of the denoisers and the ControlNet: `sdpa` is torch's own, `xformers`, `flash`, `sage` and others
            those of diffusers' dispatcher (see `w2sd_video.backends.attention.attention_names`). UNets and other older
            networks take at most `sdpa` and `xformers`.
        variant: of the files of `pretrained`, `fp16` for example.
        controlnet: hub id or folder of a ControlNet; the pipeline is then the ControlNet one of its kind.
        ip_adapter: file of an IP-Adapter: a path, or `owner/name/folder/file` on the hub. Its image encoder lies in
            `image_encoder` beside it, unless the pipeline or `components` has one.
        scheduler: class of scheduler that takes the place of the pipeline's own, `DDIMScheduler` for example, with its
            config but without clipping of samples.
        components: hub ids or folders of components that the pipeline's repository lacks, or that take the place of its
            own, by their names: `text_encoder_4`, `vae`.
        config: hub id or folder with the configs of a single file; None lets diffusers find it on the hub.

    Returns:
        A stock pipeline, its VAE set to save memory.

    Raises:
        FileNotFoundError: a checkpoint that is not there.
        ValueError: a checkpoint of another class or shape, found before its weights are loaded; a ControlNet,
            IP-Adapter or component that this pipeline does not take; an attention that its networks cannot be set to;
            a setting that does not exist or cannot be had here.
        ModuleNotFoundError: xformers is asked for and not installed.
    """
    target, dtype = check_settings(device, dtype, memory, attention, native=torch.bfloat16)
    weights, components, single = weights or {}, components or {}, is_single_file(pretrained)
    index = {"_class_name": kind_of_file(pretrained)} if single else pipeline_index(pretrained)
    family = _family(index["_class_name"], controlnet)
    if ip_adapter is not None and not hasattr(family, "load_ip_adapter"):
        raise ValueError(f"{family.__name__} takes no IP-Adapter; leave ip_adapter out")
    scheduler_class = getattr(diffusers, scheduler or "", None)
    if scheduler is not None and not (
        isinstance(scheduler_class, type) and issubclass(scheduler_class, diffusers.SchedulerMixin)
    ):
        raise ValueError(f"diffusers has no scheduler {scheduler!r}; name a class like DDIMScheduler")
    classes = {name: _class_of(family, name) for name in components}
    denoiser_configs = {} if single else _denoiser_configs(pretrained, index)
    for denoiser in denoiser_configs.values() or [{"_class_name": "UNet2DConditionModel"}]:
        check_class(getattr(diffusers, denoiser["_class_name"]), denoiser, attention)
    if denoiser_configs:
        for name, source in weights.items():
            _check_second(denoiser_configs, name, source)

    parts = {name: _load_component(classes[name], source, dtype) for name, source in components.items()}
    if controlnet is not None:
        parts["controlnet"] = _load_controlnet(
            family, controlnet, next(iter(denoiser_configs.values()), {}), dtype, attention
        )
    if single:
        config_argument = {} if config is None else {"config": str(config)}
        pipe = load_file(family, pretrained, dtype, **config_argument, **parts)
        denoiser_configs = {
            name: dict(getattr(pipe, name).config) for name in DENOISERS if getattr(pipe, name, None) is not None
        }
        for name, source in weights.items():
            _check_second(denoiser_configs, name, source)
    else:
        pipe = load_part(family, pretrained, dtype, variant=variant, **parts)
    if scheduler_class is not None:
        clipping = {"clip_sample": False} if "clip_sample" in signature(scheduler_class).parameters else {}
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **clipping)
    if ip_adapter is not None:
        _load_ip_adapter(pipe, ip_adapter)
    if getattr(pipe, "vae", None) is not None:
        spare_memory(pipe.vae)

    seconds = {
        name: _load_second(pipe, list(denoiser_configs), source, dtype, config) for name, source in weights.items()
    }
    for network in _networks(pipe, [*denoiser_configs, "controlnet"], seconds.values()):
        set_attention(network, attention)
    place(pipe, next(iter(denoiser_configs), ""), seconds.values(), target, memory)
    for name, second in seconds.items():
        register(pipe, name, second)
    return pipe


def _family(name: str, controlnet: Source | None) -> Any:
    """Return the class of the pipeline, with a ControlNet the class that has one."""
    if controlnet is not None and "ControlNet" not in name:
        base, name = name, name.replace("Pipeline", "ControlNetPipeline")  # as AutoPipelineForText2Image has it
        if not hasattr(diffusers, name):
            raise ValueError(f"diffusers has no ControlNet pipeline for a {base}; leave controlnet out")
    if not hasattr(diffusers, name):
        raise ValueError(f"the installed diffusers has no {name}; install a version that does")
    return getattr(diffusers, name)


def _class_of(family: Any, component: str) -> Any:
    """Return the class that a pipeline names for a component."""
    types = family._get_signature_types()
    classes = [candidate for candidate in types.get(component, ()) if hasattr(candidate, "from_pretrained")]
    if not classes:
        raise ValueError(f"{family.__name__} has no component {component!r}; it has {', '.join(types)}")
    return classes[0]


def _denoiser_configs(pretrained: Source, index: Config) -> dict[str, Config]:
    """Return the config of each denoiser of a pipeline, by its name."""
    names = [name for name in DENOISERS if (index.get(name) or [None])[0] is not None]
    if not names:
        raise ValueError(f"{str(pretrained)!r} is a {index['_class_name']} without any of {', '.join(DENOISERS)}")
    kinds = {name: getattr(diffusers, index[name][1]) for name in names}
    return {name: denoiser_config(pretrained, kind, name, (kind.__name__,))[0] for name, kind in kinds.items()}


def _check_second(denoiser_configs: Mapping[str, Config], name: str, source: Source | Second) -> None:
    """Refuse a second denoiser of another class or shape, before any weights are loaded."""
    where = f"weights[{name!r}]"
    if isinstance(source, tuple) and len(denoiser_configs) == 1:
        raise ValueError(f"{where} is a pair, but the pipeline has one denoiser")
    if isinstance(source, nn.Module) and len(denoiser_configs) == 2:
        raise ValueError(f"{where} must be a pair, for the pipeline has two denoisers: {', '.join(denoiser_configs)}")
    if is_single_file(source):
        kind = kind_of_file(source)
        sdxl = next(iter(denoiser_configs.values())).get("addition_embed_type") == "text_time"
        if "unet" not in denoiser_configs or (kind == "StableDiffusionXLPipeline") != sdxl:
            raise ValueError(f"{where} is the file of a {kind}, of which the pipeline is none")
        return
    modules = source if isinstance(source, tuple) else (source,) * len(denoiser_configs)
    for (component, config), module in zip(denoiser_configs.items(), modules, strict=True):
        kind = getattr(diffusers, config["_class_name"])
        if isinstance(module, nn.Module):
            if not isinstance(module, kind):
                raise ValueError(f"{where} is a {type(module).__name__}; allowed are {kind.__name__}")
            second_config = dict(module.config)
        else:
            second_config, subfolder = denoiser_config(module, kind, component, (kind.__name__,))
            if len(denoiser_configs) == 2 and subfolder is None:
                names = " and ".join(denoiser_configs)
                raise ValueError(f"{where} is one denoiser; pass a pipeline's folder with {names}")
        _check_fits(kind, config, second_config, where)


def _check_fits(kind: Any, first_config: Config, second_config: Config, where: str) -> None:
    """Refuse a checkpoint whose tensors, or heads of attention, are not those of the pipeline's denoiser.

    Not all of their configs is compared, in which older checkpoints write the same thing in other words. A transformer
    of another width or depth fits too, as AutoGuidance's smaller version does (Karras et al., arXiv 2406.02507), if
    nothing else in its config differs: it takes and gives the same.
    """
    if _is_of_another_size(kind, first_config, second_config):
        return
    check_same(
        {name: _listed(first_config[name]) for name in _HEADS if name in first_config},
        _listed(second_config),
        where=where,
    )
    first_shapes, second_shapes = _shapes(kind, first_config), _shapes(kind, second_config)
    check_same({name: first_shapes.get(name) for name in first_shapes | second_shapes}, second_shapes, where=where)


def _is_of_another_size(kind: Any, first_config: Config, second_config: Config) -> bool:
    """Return whether two transformers differ in `_SIZES`, and in nothing else that their configs say."""
    first, second = (
        {name: _listed(value) for name, value in filled(kind, config).items() if not name.startswith("_")}
        for config in (first_config, second_config)
    )
    if not all(set(_HEADS) <= config.keys() for config in (first, second)):
        return False  # a UNet, whose sizes are lists of other things too
    # Attention to the text is as wide as the tokens where captions are projected to it, and is the text's own else.
    sizes = {*_SIZES, *(["cross_attention_dim"] if first.get("caption_channels") else [])}
    differing = {name for name in first | second if first.get(name) != second.get(name)}
    return bool(differing) and differing <= sizes


def _listed(value: Any) -> Any:
    """Return a config's value with lists for tuples, as JSON has them."""
    if isinstance(value, Mapping):
        return {name: _listed(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _shapes(kind: Any, config: Config) -> dict[str, tuple[int, ...]]:
    with init_empty_weights():
        return {name: tuple(tensor.shape) for name, tensor in kind.from_config(config).state_dict().items()}


def _load_second(pipe: Any, names: list[str], source: Source | Second, dtype: torch.dtype, config: Any) -> Second:
    """Load a second denoiser, of a two-stage model a pair, of which `_check_second` knows that it fits."""
    if isinstance(source, nn.Module):
        return source.eval()
    if isinstance(source, tuple):
        return source[0].eval(), source[1].eval()
    kinds = [type(getattr(pipe, name)) for name in names]
    if is_single_file(source):
        return load_file(kinds[0], source, dtype, **({} if config is None else {"config": str(config)}))
    subfolders = [
        denoiser_config(source, kind, name, (kind.__name__,))[1] for kind, name in zip(kinds, names, strict=True)
    ]
    modules = [load_part(kind, source, dtype, subfolder) for kind, subfolder in zip(kinds, subfolders, strict=True)]
    return modules[0] if len(modules) == 1 else (modules[0], modules[1])


def _networks(pipe: Any, names: list[str], seconds: Iterable[Second]) -> list[nn.Module]:
    """Return all that is evaluated at every step: denoisers, second ones, and a ControlNet."""
    components = [getattr(pipe, name, None) for name in names]
    second_denoisers = [module for second in seconds for module in (second if isinstance(second, tuple) else (second,))]
    return [*(network for network in components if network is not None), *second_denoisers]


def _load_component(kind: Any, source: Source, dtype: torch.dtype) -> Any:
    """Load a component, which may be no network (a tokenizer) and then has no precision."""
    if issubclass(kind, nn.Module):
        return load_part(kind, source, dtype).eval()
    return kind.from_pretrained(str(Path(source).expanduser()))


def _load_controlnet(family: Any, source: Source, denoiser: Config, dtype: torch.dtype, attention: str) -> Any:
    """Load a ControlNet, once its config is known to be for this denoiser."""
    classes = [
        candidate for candidate in family._get_signature_types()["controlnet"] if hasattr(candidate, "load_config")
    ]
    config, subfolder = denoiser_config(source, classes[0], "controlnet", [candidate.__name__ for candidate in classes])
    controlnet_class = getattr(diffusers, config["_class_name"])
    shared_settings = {
        name: _listed(denoiser[name]) for name in _SHARED_WITH_CONTROLNET if name in denoiser and name in config
    }
    # Networks with motion layers and without say the number of heads by different names.
    shared_settings = {
        name: value
        for name, value in shared_settings.items()
        if name not in _HEADS or None not in (value, config[name])
    }
    check_same(shared_settings, _listed(config), where=f"controlnet {str(source)!r}")
    check_class(controlnet_class, config, attention)
    return load_part(controlnet_class, source, dtype, subfolder)


def _load_ip_adapter(pipe: Any, source: Source) -> None:
    """Load an IP-Adapter into the pipeline's own denoiser, with its image encoder if the pipeline has none."""
    path = Path(source).expanduser()
    if path.is_file():
        repository, folder, file = str(path.parent), "", path.name
        encoder = path.parent / "image_encoder"
        if pipe.image_encoder is None and not encoder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(encoder)!r}; pass the image encoder as components={{'image_encoder': ...}}"
            )
    else:
        owner, name, *folders = str(source).split("/")
        if not folders:
            raise FileNotFoundError(
                f"there is no file {str(source)!r}; pass a path, or owner/name/folder/file on the hub"
            )
        repository, folder, file = f"{owner}/{name}", "/".join(folders[:-1]), folders[-1]
    pipe.load_ip_adapter(repository, subfolder=folder, weight_name=file)
