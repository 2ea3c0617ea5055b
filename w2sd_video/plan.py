"""What a configuration will load and evaluate, found out without loading: checks, evaluations, memory."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from w2sd_video.config import BranchConfig, ConfigError, ModelConfig, RenderConfig, reflected_steps

MINIATURE = "miniature:"
"""Start of the name of a model that comes with this package."""

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_DENOISER = {"animatediff": "unet", "cogvideox": "transformer"}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes that a model can do: sides of multiples, in pixels, and 1 + k * frame_step frames, up to most_frames."""

    multiple: int
    frame_step: int
    most_frames: int


def path_of(source: str) -> Path | None:
    """Return the folder, or the single .safetensors file, that a source names; None for a hub id.

    Raises:
        ConfigError: a path where nothing is, or a name that is neither.
    """
    miniature = Path(__file__).parent / "miniatures" / "weights" / source.removeprefix(MINIATURE)
    path = miniature if source.startswith(MINIATURE) else Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return path
    if source.startswith(MINIATURE):
        raise ConfigError(f"model {source!r}: no such miniature; there is no folder {path}")
    parts = source.split("/")
    if source.startswith(("/", ".", "~")) or len(parts) != 2 or not all(parts):
        raise ConfigError(f"model {source!r}: no such folder, and not a hub id like 'owner/name'")
    return None


def locate(source: str) -> str:
    """Return the path that a source names; a hub id stays as it is."""
    return str(path_of(source) or source)


def check_plan(config: RenderConfig) -> None:
    """Check what depends on the model, as far as its folder tells without loading it.

    Raises:
        ConfigError: a missing model folder, a word that a miniature does not know, a size that the model cannot do.
    """
    model = config.model
    for source in (model.pretrained, model.motion_adapter, *model.weights.values(), *model.lora.values()):
        if source:
            path_of(source)
    if model.pretrained.startswith(MINIATURE):
        _check_vocabulary(config)
    limits = limits_of(model)
    for name in ("height", "width"):
        value = getattr(config, name)
        if value is not None and value % limits.multiple:
            lower = value // limits.multiple * limits.multiple
            near = " or ".join(str(one) for one in (lower, lower + limits.multiple) if one)
            raise ConfigError(f"{name} {value}: must be a multiple of {limits.multiple} for this model; use {near}")
    frames, step = config.frames, limits.frame_step
    if frames is not None and frames > limits.most_frames:
        raise ConfigError(f"frames {frames}: this model makes at most {limits.most_frames}")
    if frames is not None and (frames - 1) % step:
        lower = (frames - 1) // step * step + 1
        raise ConfigError(f"frames {frames}: this model makes 1 + {step} k frames; use {lower} or {lower + step}")


def limits_of(model: ModelConfig) -> Limits:
    """Return the sizes that a model can do, from its folder's configuration or, for a hub id, from its family's."""
    folder = path_of(model.pretrained)
    vae = _settings(folder, "vae")
    scale = 2 ** (len(vae["block_out_channels"]) - 1) if vae else 8
    if model.family == "animatediff":
        adapter = _settings(folder, "motion_adapter")
        if model.motion_adapter:
            adapter = _settings(path_of(model.motion_adapter), "")
        return Limits(math.lcm(8, scale), 1, adapter.get("motion_max_seq_length", 32))
    patch = _settings(folder, "transformer").get("patch_size", 2)
    step = 2 * vae.get("temporal_compression_ratio", 4)  # its VAE decodes latent frames in pairs, after one alone
    return Limits(math.lcm(8, scale * patch), step, 1024)


def weak_panel(config: RenderConfig) -> BranchConfig:
    """Return the setting that the weak clip of a comparison is sampled with: base with the gap's fields from weak.

    Fields in which strong and weak agree are no part of the gap (as a guidance of 1 in both), and stay as in base.
    """
    strong, weak = filled(config, config.strong), filled(config, config.weak)
    names = [one.name for one in dataclasses.fields(BranchConfig)]
    gap = {name: getattr(weak, name) for name in names if getattr(weak, name) != getattr(strong, name)}
    return dataclasses.replace(config.base, **gap)


def filled(config: RenderConfig, branch: BranchConfig) -> BranchConfig:
    """Return a branch with a guidance scale: base's, if it has none of its own."""
    scale = config.base.guidance_scale if branch.guidance_scale is None else branch.guidance_scale
    return dataclasses.replace(branch, guidance_scale=scale)


def panels(config: RenderConfig) -> dict[str, RenderConfig]:
    """Return the clips to sample, by their labels: W2SD alone, or weak, strong and W2SD for a comparison."""
    if not config.compare:
        return {"W2SD": config}
    strong = dataclasses.replace(config, reflection_steps=0)
    weak = dataclasses.replace(strong, base=weak_panel(config))
    return {"weak": weak, "strong": strong, "W2SD": config}


def evaluations(config: RenderConfig) -> dict[str, int]:
    """Return the network evaluations of one clip by role; a guided prediction takes two."""
    base, strong, weak = (_halves(filled(config, one)) for one in (config.base, config.strong, config.weak))
    reflections = len(reflected_steps(config)) * config.rounds
    each_weak = len(weak) * (config.iterations if config.inversion == "implicit" else 1)
    same = dataclasses.replace(config.strong, guidance_scale=None) == dataclasses.replace(
        config.weak, guidance_scale=None
    )
    if same and config.inversion in ("current", "implicit"):
        each_weak -= len(weak & strong)  # the first weak prediction is made where the strong one was
    return {
        "base": len(base) * config.steps,
        "strong": len(strong) * reflections,
        "weak": each_weak * reflections,
    }


def parameters(model: ModelConfig) -> dict[str, float | None]:
    """Return the millions of parameters of each component, None where neither a folder nor the configuration tells."""
    known: dict[str, float | None] = dict(model.parameters)
    folder = path_of(model.pretrained)
    if folder and (folder / "model_index.json").is_file():
        index = json.loads((folder / "model_index.json").read_text())
        counts = {name: _millions(folder / name) for name in index if not name.startswith("_")}
        known |= {name: count for name, count in counts.items() if count}
    sources = dict(model.weights)
    if model.motion_adapter:
        sources["motion_adapter"] = model.motion_adapter
    for name, source in sources.items():
        folder = path_of(source)
        inner = folder and folder / _DENOISER[model.family]
        known[name] = _millions(inner if inner and inner.is_dir() else folder) if folder else known.get(name)
    return known


def describe(config: RenderConfig) -> str:
    """Say what a render would load, how often it evaluates the networks, and about how much memory it takes."""
    model, counts = config.model, parameters(config.model)
    lines = [f"pair     {pair_in_words(config)}"]
    sources = {"pipeline": model.pretrained, "motion_adapter": model.motion_adapter, **model.weights}
    sources |= {f"LoRA {name}": source for name, source in model.lora.items()}
    for name, source in sources.items():
        if source:
            lines.append(f"load     {name}: {source} {_state(source)}")
    size = f"{config.width or 'own'} x {config.height or 'own'}, {config.frames or 'own number of'} frames"
    lines.append(f"clip     {size}, {len(config.prompts)} prompt(s), seed {config.seed}")
    lines.append(f"steps    {steps_in_words(config)}")
    total = 0
    for label, one in panels(config).items():
        nfe = evaluations(one)
        total += sum(nfe.values())
        lines.append(f"NFE      {label}: {nfe_in_words(nfe)}")
    if len(config.prompts) > 1 or config.compare:
        lines.append(f"NFE      in all: {total * len(config.prompts)}")
    return "\n".join([*lines, f"memory   {_memory_in_words(config, counts)}"])


def pair_in_words(config: RenderConfig) -> str:
    """Say what strong, weak and base are."""
    return "; ".join(
        f"{role} {_branch_in_words(filled(config, getattr(config, role)))}" for role in ("strong", "weak", "base")
    )


def steps_in_words(config: RenderConfig) -> str:
    """Say how many steps there are, and how they are reflected."""
    reflected = reflected_steps(config)
    if not reflected:
        return f"{config.steps}, none reflected"
    rounds = f", {config.rounds} rounds" if config.rounds > 1 else ""
    which = f"{len(reflected)} reflected" + (f" from step {reflected.start}" if reflected.start else "")
    return f"{config.steps}, {which} (inversion {config.inversion}, strength {config.strength:g}{rounds})"


def nfe_in_words(nfe: dict[str, int]) -> str:
    """Say the evaluations by role, and their sum."""
    return " + ".join(f"{role} {count}" for role, count in nfe.items()) + f" = {sum(nfe.values())}"


def _branch_in_words(branch: BranchConfig) -> str:
    parts = [
        f"{name} {value}" for name, value in vars(branch).items() if value is not None and name != "guidance_scale"
    ]
    return ", ".join([*parts, f"guidance {branch.guidance_scale:g}"])


def _halves(branch: BranchConfig) -> set[str]:
    return {1.0: {"cond"}, 0.0: {"uncond"}}.get(float(branch.guidance_scale or 0), {"cond", "uncond"})


def _check_vocabulary(config: RenderConfig) -> None:
    from w2sd_video.miniatures import world

    branches = (config.base, config.strong, config.weak)
    for prompt in [*config.prompts, *(branch.prompt for branch in branches if branch.prompt)]:
        try:
            world.parse(prompt)
        except ValueError as error:
            raise ConfigError(f"prompt: {error}") from error


def _settings(folder: Path | None, component: str) -> dict[str, Any]:
    """Return a component's config.json, or nothing for what is not on this machine."""
    file = folder and folder / component / "config.json"
    if not file or not file.is_file():
        return {}
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"model: {file} is not JSON, so the folder is damaged: {error}") from error


def _millions(path: Path) -> float | None:
    """Count the parameters in a safetensors file, or in all of a folder, by their headers, in millions."""
    count = 0
    for file in _weight_files(path):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        count += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return count / 1e6 if count else None


def _weight_files(folder: Path) -> list[Path]:
    """Return a component's files: not its half precision variant as well, where it has both."""
    if folder.is_file():
        return [folder]
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if ".fp16" not in file.name] or files


def _state(source: str) -> str:
    if folder := path_of(source):
        return f"(folder {folder})" if source.startswith(MINIATURE) else "(folder)"
    from huggingface_hub import try_to_load_from_cache

    files = ("model_index.json", "config.json")
    cached = any(isinstance(try_to_load_from_cache(source, file), str) for file in files)
    return "(hub, in the local cache)" if cached else "(hub, not in the local cache: would be downloaded)"


def _memory_in_words(config: RenderConfig, counts: dict[str, float | None]) -> str:
    known = {name: millions for name, millions in counts.items() if millions}
    unknown = [name for name, millions in counts.items() if not millions]
    if not known:
        return "unknown: state the millions of parameters of the components in model.parameters"
    parts = ", ".join(f"{name} {millions:.4g} M" for name, millions in known.items())
    said = f"about {_size(sum(known.values()), config.dtype)} of weights in {config.dtype} ({parts})"
    if config.model.memory == "offload":
        denoisers = {_DENOISER[config.model.family], "motion_adapter", *config.model.weights}  # they stay together
        together = sum(millions for name, millions in known.items() if name in denoisers)
        said += f", at most {_size(max(together, *known.values()), config.dtype)} of them on the device at a time"
    if config.model.memory == "sequential":
        said += ", a layer of them on the device at a time"
    missing = f"; not counted, size unknown: {', '.join(unknown)}" if unknown else ""
    return f"{said}; activations come on top{missing}"


def _size(millions: float, dtype: str) -> str:
    megabytes = millions * _BYTES[dtype]
    return f"{megabytes / 1000:.3g} GB" if megabytes >= 1000 else f"{megabytes:.3g} MB"
