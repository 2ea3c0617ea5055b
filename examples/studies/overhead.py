"""What the driver costs beside the network: a reflected call against a stock one of as many evaluations.

The UNet of an SDXL pipeline hands its input back, so that all time is the loop's. A reflected call of T steps makes
T + 2 (T - 1) guided evaluations; a stock call of as many steps makes the same number, and their difference is the
driver's, its watching and measuring turns among it. Times are those of the processor, which a busy machine does not
change. Run: python examples/studies/overhead.py
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import diffusers
import torch
from jsonargparse import CLI
from jsonargparse.typing import PositiveFloat, PositiveInt

from w2sd_video import Branch, reflection


class Nothing(diffusers.UNet2DConditionModel):
    """A UNet with the arguments of SDXL's that does nothing."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Return the latents."""
        return (0.9 * sample,)


def pipeline() -> Any:
    """Return an SDXL pipeline without text encoders, whose UNet does nothing."""
    torch.manual_seed(0)
    unet = Nothing(
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 8,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    pipe = diffusers.StableDiffusionXLPipeline(
        vae, None, None, None, None, unet, diffusers.DDIMScheduler(), add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    torch.set_num_threads(1)  # all work in the thread whose time is taken
    return pipe


def seconds(pipe: Any, steps: int) -> float:
    """Return what a call of some steps takes."""
    texts = {f"{sign}prompt_embeds": torch.zeros(1, 7, 8) for sign in ("", "negative_")}
    pooled = {f"{sign}pooled_prompt_embeds": torch.zeros(1, 8) for sign in ("", "negative_")}
    started = time.thread_time()
    pipe(num_inference_steps=steps, height=64, width=64, output_type="latent", **texts, **pooled)
    return time.thread_time() - started


def main(steps: PositiveInt = 50, repeats: PositiveInt = 3, forward: PositiveFloat = 0.065) -> dict[str, float]:
    """Print the driver's share of a reflected call.

    Args:
        steps: of the reflected call.
        repeats: pairs of calls, one after the other.
        forward: seconds of a guided evaluation of the network that the share is of; SDXL's at 1024 pixels take about
            0.065 on an H100 in half precision.

    Returns:
        The driver's seconds a call, by gap.
    """
    pipe = pipeline()
    gaps = {
        "guidance": (Branch(guidance_scale=5.0), Branch(guidance_scale=1.0)),
        "weights": (Branch(), Branch(weights=pipeline().unet)),
    }
    evaluations = steps + 2 * (steps - 1)
    seconds(pipe, steps)
    seconds(pipe, steps)  # what a first call does besides
    found: dict[str, float] = {}
    for name, (strong, weak) in gaps.items():
        differences = []
        for _ in range(repeats):
            stock = seconds(pipe, evaluations)
            with reflection(pipe, strong=strong, weak=weak):
                differences.append(seconds(pipe, steps) - stock)
        found[name] = statistics.median(differences)
        spread = f"{min(differences):.3f} to {max(differences):.3f}"
        print(
            f"{name}: {found[name]:.3f} s a call of {steps} steps ({spread} in {repeats} pairs), "
            f"{1000 * found[name] / evaluations:.2f} ms an evaluation; {found[name] / (evaluations * forward):.2%} of "
            f"{evaluations} evaluations of {forward} s"
        )
    return found


if __name__ == "__main__":
    CLI(main)
