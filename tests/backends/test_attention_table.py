"""The table of attention kernels in the guide, against what can be set in tiny networks of each family."""

import re
from pathlib import Path

import pytest
import tiny
from tiny.dit_moe import dit_moe
from tiny.variants import build

from w2sd_video.backends import DENOISERS, attention

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "large-models.md"
PIPELINES = {
    "Wan": tiny.wan,
    "SkyReels V2": lambda: build("SkyReelsV2Pipeline"),
    "Flux": tiny.flux,
    "Chroma": lambda: build("ChromaPipeline"),
    "LTX-Video": tiny.ltx,
    "Hunyuan Video": tiny.hunyuan_video,
    "Qwen-Image": lambda: build("QwenImagePipeline"),
    "Z-Image": lambda: build("ZImagePipeline"),
    "Kandinsky 5": lambda: build("Kandinsky5T2VPipeline"),
    "NucleusMoE": tiny.nucleus_moe,
    "CogVideoX": tiny.cogvideox,
    "DiT-MoE": dit_moe,
    "Stable Diffusion": tiny.stable_diffusion,
    "SDXL": tiny.stable_diffusion_xl,
    "Stable Diffusion 3": tiny.stable_diffusion_3,
    "AnimateDiff": tiny.animatediff,
    "PixArt": tiny.pixart,
    "DiT": tiny.dit,
    "Latte": tiny.latte,
    "Sana": tiny.sana,
    "Mochi": tiny.mochi,
    "HiDream": tiny.hidream,
    "Lumina 2": lambda: build("Lumina2Pipeline"),
    "CogView 4": lambda: build("CogView4Pipeline"),
    "Cosmos 2": lambda: build("Cosmos2TextToImagePipeline"),
    "Hunyuan DiT": lambda: build("HunyuanDiTPipeline"),
    "AuraFlow": lambda: build("AuraFlowPipeline"),
    "Allegro": lambda: build("AllegroPipeline"),
}


def rows():
    """Return the kernels of each network of the table."""
    table = re.findall(r"^\| (.*) \| (all of them|`.*) \|$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: kernels for names, kernels in table for name in names.split(", ")}


def allowed(network, kernel):
    try:
        attention.check_class(type(network), network.config, kernel)
    except ValueError:
        return False
    return True


def test_the_table_has_these_networks():
    assert sorted(rows()) == sorted(PIPELINES)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_network_takes_the_kernels_of_the_table(name):
    pipe, _ = PIPELINES[name]()
    network = next(part for kind in DENOISERS if (part := getattr(pipe, kind, None)) is not None)
    takes = {kernel for kernel in ("sdpa", "xformers", "flash") if allowed(network, kernel)}
    told = rows()[name]
    assert takes == ({"sdpa", "xformers", "flash"} if told == "all of them" else set(re.findall("`(.*?)`", told)))
