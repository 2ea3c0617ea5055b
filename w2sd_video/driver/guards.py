"""What has to hold of a pipeline's loop for it to be reflected, watched without waiting on the device in between."""

from __future__ import annotations

import torch


class HandedBack:
    """Latents that the pipeline was handed back, to be stepped from in its next turn as they are.

    Between steps a pipeline may change its latents; between the turns of one step they are the sampler's. Most hand
    over the very tensor, which takes no look at its values. Others reshape it: of these the first one is compared at
    once, and the later ones together when asked for.
    """

    def __init__(self) -> None:
        self._latents: torch.Tensor | None = None
        self._version = 0
        self._equal: torch.Tensor | None = None

    def forget(self) -> None:
        """Forget an earlier loop."""
        self._latents = self._equal = None

    def remember(self, latents: torch.Tensor) -> None:
        """Keep what is handed back."""
        self._latents, self._version = latents, _version(latents)

    def check(self, latents: torch.Tensor) -> None:
        """Compare what the pipeline steps from.

        Raises:
            ValueError: it is something else; the first time that it has to be looked at.
        """
        given = self._latents
        assert given is not None
        if latents is given and _version(given) == self._version:
            return
        if latents is given or latents.shape != given.shape:
            raise ValueError(EDITED)
        equal = (latents == given).all()
        if self._equal is None and not equal:
            raise ValueError(EDITED)
        self._equal = equal if self._equal is None else self._equal & equal

    def compare(self) -> None:
        """Look at what the loop's later turns were compared to.

        Raises:
            ValueError: something else than what was handed back.
        """
        if self._equal is not None and not self._equal:
            raise ValueError(EDITED)


EDITED = (
    "the pipeline changes its latents in every turn of its loop (as inpainting does that keeps the unmasked part by "
    "noising it anew), which cannot be reflected so; use inversion='current', which leaves such a part where it is, an "
    "inpainting checkpoint, or reflect no step (reflection_steps=0)"
)


def _version(latents: torch.Tensor) -> int:
    """Return how often a tensor was written into, where it is counted."""
    return 0 if latents.is_inference() else latents._version
