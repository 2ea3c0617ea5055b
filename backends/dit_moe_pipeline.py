"""DiT-MoE as a diffusers pipeline: images of given classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange

from w2sd_video.backends.dit_moe_model import DiTMoETransformer2DModel
from w2sd_video.guidance import guided

_OUTPUT_TYPES = ("pil", "np", "pt", "latent")
"""What diffusers' image processor makes, and latents."""
_HALVES = "(halves samples) channels height width -> halves samples channels height width"


class DiTMoEPipeline(DiffusionPipeline):
    """Class-conditional image generation with a transformer of experts (Fei et al., arXiv 2407.11633).

    `DiTMoEPipeline.from_pretrained` loads what `save_pretrained` wrote; `w2sd_video.backends.dit_moe.load` loads the
    published checkpoints too.

    Args:
        transformer: predicts what the scheduler expects. A variance in a second half of its channels goes to a
            `DDPMScheduler` that learned it, and is dropped for every other scheduler.
        vae: decodes the latents.
        scheduler: any that has `step`; rectified-flow networks take a `FlowMatchEulerDiscreteScheduler`.
        id2label: names of the classes by number (as digits in files), several of one class apart by commas.
    """

    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        transformer: DiTMoETransformer2DModel,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        id2label: dict[int, str] | dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        self.image_processor = VaeImageProcessor(vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1))
        self.labels = dict(
            sorted(
                (name.strip(), int(number)) for number, names in (id2label or {}).items() for name in names.split(",")
            )
        )
        self._guidance_scale = 1.0

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the latest call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the latest call evaluates the null class too."""
        return self._guidance_scale > 1

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Return the numbers of classes by their names.

        Raises:
            ValueError: a name that no class has.
        """
        names = [label] if isinstance(label, str) else list(label)
        for name in names:
            if name not in self.labels:
                known = ", ".join(self.labels) or "none (the pipeline was made without id2label)"
                raise ValueError(f"no class is named {name!r}; known are {known}")
        return [self.labels[name] for name in names]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 4.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        latents: torch.Tensor | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate an image of each class label.

        Args:
            class_labels: one a sample, from 0 to `num_classes - 1`; `num_classes` itself asks for no class.
            guidance_scale: w of ``uncond + w * (cond - uncond)``; at 1 or below no null class is evaluated.
            generator: of the noise; a list holds one a sample.
            num_inference_steps: steps of the scheduler.
            latents: noise to begin with instead, (samples, in_channels, sample_size, sample_size).
            eta: noise of each step, 0 to 1, of schedulers that take it (DDIM's; Song et al., arXiv 2010.02502, eq. 16).
            output_type: "pil", "np", "pt", or "latent" for latents as the network sees them.
            return_dict: whether to return an output object instead of a tuple.
            callback_on_step_end: called after each step with the pipeline, the step's index, its timestep and the
                tensors asked for; it may return other latents.
            callback_on_step_end_tensor_inputs: which tensors: "latents" is the only one there is.

        Returns:
            The images.

        Raises:
            ValueError: no class labels, one out of range, a generator list of another length, latents of another
                shape, an unknown output type or callback tensor, or an eta that the scheduler does not take.
        """
        config, device = self.transformer.config, self._execution_device
        shape = (len(class_labels), config.in_channels, config.sample_size, config.sample_size)
        self._check(class_labels, generator, latents, shape, output_type, callback_on_step_end_tensor_inputs)
        self._guidance_scale = guidance_scale

        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.transformer.dtype)
        else:
            latents = latents.to(device, self.transformer.dtype)
        labels = torch.as_tensor(class_labels, device=device, dtype=torch.long)
        if self.do_classifier_free_guidance:
            labels = torch.cat([torch.full_like(labels, config.num_classes), labels])

        is_flow = isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler)
        if is_flow:  # evenly from 1 to 0, as the published code walks
            sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        step_arguments = self._step_arguments({"generator": generator, "eta": eta})
        latents = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(self.scheduler.timesteps):
                model_input = torch.cat([latents] * 2) if self.do_classifier_free_guidance else latents
                if not is_flow:
                    model_input = self.scheduler.scale_model_input(model_input, t)
                prediction = self.transformer(model_input, timestep=t, class_labels=labels, return_dict=False)[0]
                prediction, variance = prediction.split(
                    [config.in_channels, config.out_channels - config.in_channels], 1
                )
                if self.do_classifier_free_guidance:
                    uncond, cond = rearrange(prediction, _HALVES, halves=2)
                    prediction = guided(cond, uncond, guidance_scale)
                    variance = rearrange(variance, _HALVES, halves=2)[1]
                if _learned_variance(self.scheduler):
                    prediction = torch.cat([prediction, variance], dim=1)
                latents = self.scheduler.step(prediction, t, latents, return_dict=False, **step_arguments)[0]
                if callback_on_step_end is not None:
                    callback_tensors = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                    latents = callback_on_step_end(self, i, t, callback_tensors).get("latents", latents)
                bar.update()

        images = latents
        if output_type != "latent":
            images = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _step_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return those arguments that a step of the scheduler has.

        Raises:
            ValueError: an eta that it has not.
        """
        known = inspect.signature(self.scheduler.step).parameters
        if arguments["eta"] and "eta" not in known:
            name = type(self.scheduler).__name__
            raise ValueError(f"eta {arguments['eta']}: {name} takes none; leave it out, or take a DDIMScheduler")
        return {name: value for name, value in arguments.items() if name in known}

    def _check(
        self,
        class_labels: Sequence[int],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        shape: tuple[int, ...],
        output_type: str,
        tensor_inputs: Sequence[str],
    ) -> None:
        """Refuse what a call cannot work with."""
        classes = self.transformer.config.num_classes
        if not class_labels:
            raise ValueError("class_labels is empty; give one label a sample")
        if out_of_range := [label for label in class_labels if not 0 <= label <= classes]:
            raise ValueError(
                f"class label {out_of_range[0]} is not among 0 to {classes - 1}, the classes; {classes} asks for none"
            )
        if isinstance(generator, list) and len(generator) != len(class_labels):
            raise ValueError(
                f"there are {len(generator)} generators for {len(class_labels)} class labels; give one each"
            )
        if latents is not None and latents.shape != shape:
            raise ValueError(f"latents have the shape {tuple(latents.shape)}; these class labels need {shape}")
        if output_type not in _OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(_OUTPUT_TYPES)}; got {output_type!r}")
        if unknown := set(tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs knows only 'latents'; got {min(unknown)!r}")


def _learned_variance(scheduler: Any) -> bool:
    """Return whether a scheduler takes a variance behind the prediction."""
    return isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type in ("learned", "learned_range")
