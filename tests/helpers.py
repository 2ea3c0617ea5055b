"""What tests of the plugin share: a run of a pipeline, and all that it might leave changed."""

import diffusers
import torch

NOTHING = 1e-300
"""A strength whose displacement rounds to nothing, though all is led and evaluated as in any reflection."""


def run(pipe, call, **changes):
    """Return the final latents of a run from one and the same noise (DiT's are decoded, for it always decodes)."""
    arguments = {**call, "generator": torch.Generator().manual_seed(7), **changes}
    if isinstance(pipe, diffusers.DiTPipeline):
        return torch.as_tensor(pipe(**arguments, output_type="np").images)
    result = pipe(**arguments, output_type="latent")
    return result.frames if hasattr(result, "frames") else result.images


OF_A_CALL = (
    "model_outputs",
    "timestep_list",
    "last_sample",
    "sample",
    "ets",
    "cur_sample",
    "derivatives",
    "_step_index",
)
"""What schedulers keep of their latest call, a stock one too."""


def state(pipe):
    """Return everything that a run might leave changed, in a form that can be compared."""
    modules = [
        module for part in pipe.components.values() if isinstance(part, torch.nn.Module) for module in part.modules()
    ]
    processors = [module.processor for module in modules if getattr(module, "processor", None) is not None]
    return {
        "class": type(pipe),
        "attributes": {name: id(value) for name, value in pipe.__dict__.items() if name in pipe.components},
        "config": dict(pipe.config),
        "scheduler": (id(pipe.scheduler), {k: str(v) for k, v in vars(pipe.scheduler).items() if k not in OF_A_CALL}),
        "modules": [(id(module), _plain(vars(module)), id(vars(module).get("forward"))) for module in modules],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules],
        "processors": [(id(processor), _plain(vars(processor))) for processor in processors],
    }


def close(result, expected, tolerance=1e-5):
    """Two ways to the same latents, but for the order in which numbers are added."""
    assert result.shape == expected.shape
    error = float((result - expected).norm() / expected.norm())
    assert error < tolerance


def add_lora(module, name, seed):
    """Load a random LoRA into a network of diffusers."""
    from peft import LoraConfig

    torch.manual_seed(seed)
    module.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]), adapter_name=name)
    for parameter_name, parameter in module.named_parameters():
        if f"lora_B.{name}" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.5)


def _plain(attributes):
    """All names, and the values that can be compared."""
    return {
        name: value if isinstance(value, (int, float, str, tuple, list)) or _is_flat(value) else None
        for name, value in attributes.items()
    }


def _is_flat(value):
    return isinstance(value, dict) and all(isinstance(item, (int, float, str, bool)) for item in value.values())
