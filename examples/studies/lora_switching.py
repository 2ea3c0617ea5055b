"""What it costs to switch LoRA scales by a branch and by diffusers' own set_adapters, on a UNet of SDXL's size.

python examples/studies/lora_switching.py
"""

from __future__ import annotations

import statistics
import time

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from w2sd_video import Branch
from w2sd_video.gaps import swapped, swaps_of

SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REPEATS = 20


def milliseconds(switch) -> float:
    start_time = time.perf_counter()
    switch()
    return 1000 * (time.perf_counter() - start_time)


def main() -> None:
    with torch.device("meta"):  # a switch touches no weight, so there need not be any
        unet = UNet2DConditionModel(**SDXL)
        unet.add_adapter(LoraConfig(r=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), adapter_name="style")
    layers = sum(hasattr(module, "scaling") for module in unet.modules())
    prepared = milliseconds(lambda: swaps_of(unet, Branch(lora={"style": -1.5})))
    swaps = swaps_of(unet, Branch(lora={"style": -1.5}))

    def branch_and_back() -> None:
        with swapped(swaps):
            pass

    def set_adapters_and_back() -> None:
        unet.set_adapters(["style"], [-1.5])
        unet.set_adapters(["style"], [0.8])

    branch_times, adapter_times = [], []
    for _ in range(REPEATS):
        branch_times.append(milliseconds(branch_and_back))
        adapter_times.append(milliseconds(set_adapters_and_back))
    ratios = [adapter_time / branch_time for branch_time, adapter_time in zip(branch_times, adapter_times, strict=True)]
    print(f"{layers} LoRA layers, medians of {REPEATS} alternating runs; there and back")
    branch_median = statistics.median(branch_times)
    print(f"branch        {branch_median:.2f} ms (prepared once, before the first step: {prepared:.1f} ms)")
    print(f"set_adapters  {statistics.median(adapter_times):.2f} ms")
    print(f"ratio         {statistics.median(ratios):.0f} (from {min(ratios):.0f} to {max(ratios):.0f})")


if __name__ == "__main__":
    main()
