"""A loop's call of its scheduler's step: what it is given, and the forms in which it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from inspect import Signature
from typing import Any

import torch

from w2sd_video.driver.signatures import as_given, by_name


class StepCall:
    """One call of ``scheduler.step``, as a loop makes it.

    Args:
        signature: of the scheduler's step.
        args: given by position.
        kwargs: given by name.
    """

    def __init__(self, signature: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self._signature = signature

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """All of them by name; those that are put in the place of others are what the step is taken with."""
        return by_name(self._signature, self.args, self.kwargs)

    @property
    def prediction(self) -> torch.Tensor:
        """What the loop has made of its network's evaluations, with a learned variance behind it where there is one."""
        prediction: torch.Tensor = self.arguments["model_output"]
        return prediction

    @property
    def latents(self) -> torch.Tensor:
        """What the loop steps from."""
        latents: torch.Tensor = self.arguments["sample"]
        return latents

    def taken_by(self, scheduler: Any, prediction: torch.Tensor) -> Any:
        """Have a scheduler take its own step, with another prediction in the place of the loop's."""
        prediction = with_variance(prediction, self.prediction)
        positional, named = as_given(self.arguments | {"model_output": prediction}, len(self.args))
        return scheduler.step(*positional, **named)

    def handing_back(self, latents: torch.Tensor) -> Any:
        """Return latents in the form in which the scheduler returns those after its step."""
        if "timestep_back" in self._signature.parameters:
            return latents, self.arguments["old_pred_original_sample"]
        if self.arguments.get("return_dict", True):
            from diffusers.schedulers.scheduling_utils import SchedulerOutput

            return SchedulerOutput(prev_sample=latents)
        return latents, latents  # whichever the pipeline goes on with: PixArt at one step takes the second


def without_variance(prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return the part of a prediction that is not a learned variance (DDPM takes both in one tensor)."""
    if prediction.shape == latents.shape:
        return prediction
    return prediction[:, : latents.shape[1]]


def with_variance(prediction: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return a prediction with the learned variance that the pipeline's own one has behind it, if it has one."""
    if prediction.shape == own.shape:
        return prediction
    return torch.cat([prediction, own[:, prediction.shape[1] :]], dim=1)
