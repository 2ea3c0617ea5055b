"""A configuration in words: the pair, the steps, what would be loaded, evaluated and held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from w2sd_video.backends import DENOISERS
from w2sd_video.settings.evaluations import evaluations, inversion_of, is_exact, reflected_steps
from w2sd_video.settings.panels import panels
from w2sd_video.settings.schema import BranchConfig, ModelConfig, RenderConfig, filled, stage_scales
from w2sd_video.settings.sources import MINIATURE, index_of, millions, path_of

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a weight."""


_UNMEASURED = (
    "strength 1 is the paper's, and too much for some pairs: python -m w2sd_video.calibrate tells what this one bears"
)
_NOT_HERE = "(hub, not in the local cache: would be downloaded)"


def plan_in_words(config: RenderConfig) -> str:
    """Say what a render would load, how often it evaluates the networks, and about how much memory it takes."""
    model, counts = config.model, parameters(config.model)
    lines = [f"pair     {pair_in_words(config)}"]
    sources = {"pipeline": model.pretrained, **_further_sources(model)}
    lines += [f"load     {name}: {source} {_state(source)}" for name, source in sources.items()]
    for name, adapter in model.lora.items():
        file = f"{adapter} {_state(adapter)}" if adapter else f"to come: --model.lora.{name} FILE"
        lines.append(f"load     LoRA {name}: {file}")
    lines += [f"input    {name}: {path or f'to come: --inputs.{name} FILE'}" for name, path in config.inputs.items()]
    lines += [f"kernel   {model.attention} (attention)"] if model.attention != "sdpa" else []
    size = f"{config.width or 'own'} x {config.height or 'own'}, {config.frames or 'own number of'} frame(s)"
    lines.append(f"clip     {size}, {len(config.prompts)} prompt(s), seed {config.seed}")
    lines += [] if _is_here(config.device) else [f"device   {config.device}: not on this machine"]
    lines.append(f"steps    {steps_in_words(config)}")
    lines += [f"steps    {_UNMEASURED}"] if reflected_steps(config) and config.strength == 1.0 else []
    total, may_be_fewer = 0, False
    for label, panel in panels(config).items():
        nfe = evaluations(panel)
        total, may_be_fewer = total + sum(nfe.values()), may_be_fewer or not is_exact(panel)
        lines.append(f"NFE      {label}: {'' if is_exact(panel) else 'at most '}{nfe_in_words(nfe)}")
    if len(config.prompts) > 1 or config.compare:
        lines.append(f"NFE      in all: {'at most ' * may_be_fewer}{total * len(config.prompts)}")
    lines += _download_in_words(model, counts)
    return "\n".join([*lines, f"memory   {_memory_in_words(config, counts)}"])


def pair_plan(config: RenderConfig) -> list[str]:
    """Return the lines of `plan_in_words` that are of the pair, and not of one render."""
    return [line for line in plan_in_words(config).splitlines() if line.split()[0] not in ("clip", "steps", "NFE")]


def parameters(model: ModelConfig) -> dict[str, float | None]:
    """Return the millions of parameters of each component, None where neither a folder nor the configuration tells."""
    known: dict[str, float | None] = dict(model.parameters)
    folder = path_of(model.pretrained)
    if folder and folder.is_file():
        known |= {"checkpoint": millions(folder) or known.get("checkpoint")}
    elif folder:
        counts = {name: millions(folder / name) for name in index_of(model) if not name.startswith("_")}
        known |= {name: count for name, count in counts.items() if count}
    for name, source in _further_sources(model).items():
        if not name.startswith("tokenizer"):  # which has files, but no weights
            known[name] = _millions_of(source) or known.get(name)
    return known


def to_download(model: ModelConfig) -> list[str]:
    """Return the hub ids of a model that are not in the local cache."""
    sources = [
        model.pretrained,
        *_further_sources(model).values(),
        *(source for source in model.lora.values() if source),
    ]
    return [source for source in sources if _state(source) == _NOT_HERE]


def _download_in_words(model: ModelConfig, counts: Mapping[str, float | None]) -> list[str]:
    """Say how much would be downloaded, if anything would be."""
    missing = to_download(model)
    known = sum(count for count in counts.values() if count)
    if not missing:
        return []
    if model.pretrained not in missing or not known:
        return [f"download {', '.join(missing)}, of unknown size"]
    sizes = f"{_size(known, 'bfloat16')} if published in half precision, {_size(known, 'float32')} in float32"
    return [f"download {', '.join(missing)}: about {sizes}"]


def _further_sources(model: ModelConfig) -> dict[str, str]:
    """Return what is loaded besides the pipeline, by name: the hub ids, folders and files."""
    parts = {"motion_adapter": model.motion_adapter, "controlnet": model.controlnet, "ip_adapter": model.ip_adapter}
    parts |= {"vae": model.vae}
    return {name: source for name, source in parts.items() if source} | model.components | model.weights


def _millions_of(source: str) -> float | None:
    """Return the millions of parameters of a denoiser or another part, alone or in the folder of a pipeline."""
    folder = path_of(source)
    if not folder:
        return None
    denoisers = [folder / name for name in DENOISERS if (folder / name).is_dir()]
    return sum(millions(part) or 0 for part in denoisers or [folder]) or None


def pair_in_words(config: RenderConfig) -> str:
    """Say what strong, weak and base are."""
    return "; ".join(
        f"{role} {_branch_in_words(filled(config, getattr(config, role)))}" for role in ("strong", "weak", "base")
    )


def steps_in_words(config: RenderConfig) -> str:
    """Say how many steps there are, and how they are reflected."""
    reflected = reflected_steps(config)
    autoguidance = f"; autoguidance {_number(config.autoguidance)}" if config.autoguidance else ""
    autoguidance += _where(config.autoguidance_steps) if config.autoguidance else ""
    if not reflected:
        return f"{config.steps}, none reflected{autoguidance}"
    how = [f"inversion {inversion_of(config)}", f"strength {_number(config.strength)}"]
    how += [f"read as {config.reading}"] if config.reading != "epsilon" else []
    how += [f"measured every {config.reuse} steps, {config.carried}"] if config.reuse > 1 else []
    how += [f"{config.rounds} rounds"] if config.rounds > 1 else []
    how += [f"over {config.span} steps"] if config.span > 1 else []
    which = f"{len(reflected)} reflected" + (f" from step {reflected.start}" if reflected.start else "")
    return f"{config.steps}, {which} ({', '.join(how)}){autoguidance}"


def _number(strength: float | str) -> str:
    return strength if isinstance(strength, str) else f"{strength:g}"


def _where(steps: Any) -> str:
    if steps is None:
        return ""
    return f" at the first {steps} steps" if isinstance(steps, int) else f" in {steps}"


def nfe_in_words(nfe: dict[str, int]) -> str:
    """Say the evaluations by role, and their sum."""
    return " + ".join(f"{role} {count}" for role, count in nfe.items()) + f" = {sum(nfe.values())}"


def _branch_in_words(branch: BranchConfig) -> str:
    windows = branch.windows or {}
    values = {name: value for name, value in vars(branch).items() if name not in ("guidance_scale", "windows")}
    parts = [f"{name} {value}{_where(windows.get(name))}" for name, value in values.items() if value is not None]
    scales = " and ".join(f"{scale:g}" for scale in stage_scales(branch.guidance_scale))
    return ", ".join([*parts, f"guidance {scales}{_where(windows.get('guidance_scale'))}"])


def _is_here(device: str) -> bool:
    """Return whether this machine has a device; "auto" it always has."""
    try:
        torch.zeros(1, device="cpu" if device == "auto" else device)
    except (AssertionError, NotImplementedError, RuntimeError):
        return False
    return True


def _state(source: str) -> str:
    if folder := path_of(source):
        if source.startswith(MINIATURE):
            return f"(folder {folder})"
        return "(folder)" if folder.is_dir() else "(file)"
    from huggingface_hub import try_to_load_from_cache

    owner, name, *file = source.split("/")
    # A pipeline has the one and a model the other, and either is there as soon as it was downloaded.
    files = ["/".join(file)] if file else ["model_index.json", "config.json"]
    cached = any(isinstance(try_to_load_from_cache(f"{owner}/{name}", file), str) for file in files)
    return "(hub, in the local cache)" if cached else _NOT_HERE


def _memory_in_words(config: RenderConfig, counts: dict[str, float | None]) -> str:
    known = {name: millions for name, millions in counts.items() if millions}
    unknown = [name for name, millions in counts.items() if not millions]
    if not known:
        return "unknown: state the millions of parameters of the components in model.parameters"
    parts = ", ".join(
        f"{name} {f'{count:.0f}' if count >= 1000 else f'{count:.4g}'} M" for name, count in known.items()
    )
    words = f"about {_size(sum(known.values()), config.dtype)} of weights in {config.dtype} ({parts})"
    if config.model.memory == "offload":
        # At a step one denoiser works, and what works with it stays on the device.
        denoisers = [known[name] for name in DENOISERS if name in known] or [0]
        weights = sum(known.get(name, 0) for name in config.model.weights) / len(denoisers)
        at_a_step = max(denoisers) + weights + known.get("motion_adapter", 0) + known.get("controlnet", 0)
        words += f", at most {_size(max(at_a_step, *known.values()), config.dtype)} of them on the device at a time"
    if config.model.memory == "sequential":
        words += ", a layer of them on the device at a time"
    missing = f"; not counted, size unknown: {', '.join(unknown)}" if unknown else ""
    return f"{words}; activations come on top{missing}"


def _size(millions: float, dtype: str) -> str:
    megabytes = millions * _BYTES[dtype]
    return f"{megabytes / 1000:.3g} GB" if megabytes >= 1000 else f"{megabytes:.3g} MB"
