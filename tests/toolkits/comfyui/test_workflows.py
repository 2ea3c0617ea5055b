"""The workflows of examples/comfyui as ComfyUI sees them: checked by its validation, and executed on tiny networks."""

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import comfy.sd
import execution
import folder_paths
import networks
import nodes
import pytest
import test_one_network
import torch

ROOT = Path(__file__).parents[3]
COMFYUI = Path(nodes.__file__).parent
WORKFLOWS = sorted((ROOT / "examples" / "comfyui").glob("*.json"))
FURTHER = ["custom_sampler", "wan", "hunyuan", "lt", "flux", "sd3", "video", "model_advanced"]
each_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture(scope="module", autouse=True)
def all_nodes(tmp_path_factory):
    """ComfyUI's own nodes, and ours as a file of one line in custom_nodes."""
    file = tmp_path_factory.mktemp("custom_nodes") / "w2sd.py"
    file.write_text("from w2sd_video.backends.comfyui import *\n", encoding="utf-8")
    before = dict(nodes.NODE_CLASS_MAPPINGS)
    for path in [*(COMFYUI / "comfy_extras" / f"nodes_{name}.py" for name in FURTHER), file]:
        assert asyncio.run(nodes.load_custom_node(str(path)))
    assert {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("W2SD")} == set(OURS)
    assert nodes.NODE_DISPLAY_NAME_MAPPINGS["W2SDGuider"] == "W2SD Guider"
    yield
    nodes.NODE_CLASS_MAPPINGS.clear()
    nodes.NODE_CLASS_MAPPINGS.update(before)


OURS = [
    "W2SDGuider",
    "W2SDModel",
    "W2SDPresets",
    "W2SDSampler",
    "W2SDSettings",
    "W2SDSkipLayers",
    "W2SDStrengthSchedule",
]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def validated(workflow):
    return asyncio.run(execution.validate_prompt("test", workflow, None))


@pytest.fixture
def files(monkeypatch):
    """Whatever file a workflow names is there."""
    named = [
        value
        for path in WORKFLOWS
        for node in read(path).values()
        for value in node["inputs"].values()
        if isinstance(value, str)
    ]
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda folder: named)
    monkeypatch.setattr(folder_paths, "exists_annotated_filepath", lambda name: True)
    monkeypatch.setattr(nodes.LoadImage, "INPUT_TYPES", classmethod(lambda cls: {"required": {"image": (named, {})}}))
    monkeypatch.setattr(nodes.VAELoader, "vae_list", staticmethod(lambda *_: named))


def test_there_is_a_workflow_for_each_family():
    assert len(WORKFLOWS) == 9
    assert all(
        any(name.startswith("W2SD") for name in (n["class_type"] for n in read(path).values())) for path in WORKFLOWS
    )


@each_workflow
def test_comfyui_finds_no_fault_with_a_workflow(workflow, files):
    valid, error, outputs, node_errors = validated(read(workflow))
    assert valid and outputs and not node_errors, (error, node_errors)
    # Every node is reached from an output, and no input is one that a node does not have.
    for node in read(workflow).values():
        inputs = nodes.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
        assert node["inputs"].keys() <= {name for group in inputs.values() for name in group}
    linked = {
        value[0] for node in read(workflow).values() for value in node["inputs"].values() if isinstance(value, list)
    }
    assert linked | set(outputs) == read(workflow).keys()


@pytest.mark.parametrize(
    ("node", "name", "value", "message"),
    [
        ("W2SDSettings", "strength", math.nan, "strength must be"),
        ("W2SDSettings", "start", 0.9, "0 <= start <= stop"),
        ("W2SDSettings", "rounds", 0, "smaller than min"),
        ("W2SDSettings", "inversion", "inverse", "inversion must be one of auto, paper, explicit, current, implicit"),
        ("W2SDPresets", "preset", "best", "must be one of recommended, paper, fast, off"),
        ("W2SDSettings", "autoguidance", math.inf, "autoguidance must be"),
        ("W2SDSettings", "autoguidance_stop", 0.2, "0 <= start <= stop"),
    ],
)
def test_a_wrong_value_is_shown_on_its_node(node, name, value, message, files):
    workflow = read(next(path for path in WORKFLOWS if f'"{node}"' in path.read_text(encoding="utf-8")))
    number = next(number for number, each in workflow.items() if each["class_type"] == node)
    workflow[number]["inputs"] |= {name: value, **({"stop": 0.5} if name == "start" else {})}
    valid, _, _, node_errors = validated(workflow)
    said = json.dumps(node_errors[number])
    assert not valid and message in said, said


class Vae:
    """A VAE of nothing: frames of zeros."""

    def encode(self, pixels):
        return torch.zeros(1, 16, (pixels.shape[0] - 1) // 4 + 1, pixels.shape[1] // 8, pixels.shape[2] // 8)


class Kept:
    """What came out of the last sampling."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"samples": ("LATENT",), "vae": ("VAE",)}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "keep", True, ""
    samples: ClassVar[list] = []

    def keep(self, samples, vae):
        self.samples.append(samples["samples"].clone())
        return {}


class Anything(str):
    """A type of inputs that every output has."""

    __hash__ = str.__hash__

    def __ne__(self, other):
        return False


def standing_in(inputs, outputs, give):
    """A node class for one of ComfyUI's that reads a file."""
    members = {
        "INPUT_TYPES": classmethod(lambda cls: {"required": {name: (Anything("*"),) for name in inputs}}),
        "RETURN_TYPES": outputs,
        "FUNCTION": "give",
        "CATEGORY": "",
        "give": lambda self, **values: give(**values),
    }
    return type("StandingIn", (), members)


def tiny(make):
    """The nodes that read files, for networks of a kind: a file's name is the seed of its weights."""
    loaded = {}

    def model(name):
        return loaded.setdefault(name, make(len(loaded)))

    def of_checkpoint(ckpt_name):
        return model(ckpt_name), "clip", Vae()

    def with_lora(model, lora_name, strength_model):
        return (comfy.sd.load_lora_for_models(model, None, test_one_network.lora(model, 0), strength_model, 0.0)[0],)

    further = {"attention_mask": torch.ones(1, 8, dtype=torch.long)} if make is networks.ltx else {}
    text = standing_in(("text", "clip"), ("CONDITIONING",), lambda text, clip: (networks.text(len(text), **further),))
    clip = ("CLIP",), lambda **_: ("clip",)
    return {
        "UNETLoader": standing_in(
            ("unet_name", "weight_dtype"), ("MODEL",), lambda unet_name, **_: (model(unet_name),)
        ),
        "CheckpointLoaderSimple": standing_in(("ckpt_name",), ("MODEL", "CLIP", "VAE"), of_checkpoint),
        "LoraLoaderModelOnly": standing_in(("model", "lora_name", "strength_model"), ("MODEL",), with_lora),
        "CLIPLoader": standing_in(("clip_name", "type", "device"), *clip),
        "DualCLIPLoader": standing_in(("clip_name1", "clip_name2", "type", "device"), *clip),
        "CLIPTextEncode": text,
        "VAELoader": standing_in(("vae_name",), ("VAE",), lambda **_: (Vae(),)),
        "LoadImage": standing_in(("image",), ("IMAGE",), lambda **_: (torch.zeros(1, 64, 64, 3),)),
        "CLIPVisionLoader": standing_in(("clip_name",), ("CLIP_VISION",), lambda **_: ("clip",)),
        "CLIPVisionEncode": standing_in(("clip_vision", "image", "crop"), ("CLIP_VISION_OUTPUT",), lambda **_: (None,)),
        "VAEDecode": Kept,
        "VAEDecodeTiled": Kept,
    }


class Server:
    """What PromptExecutor wants of the server: whom to tell."""

    def __init__(self):
        self.client_id = "test"
        self.last_node_id = None
        self.last_prompt_id = None
        self.sent = []

    def send_sync(self, event, data, client_id=None):
        self.sent.append((event, data))


NETWORKS = {
    "wan": networks.wan,
    "ltx": networks.ltx,
    "hunyuanvideo": networks.hunyuan_video,
    "sd15": networks.sd15,
    "sdxl": networks.sdxl,
    "flux": networks.flux,
}
SMALL = {"width": 64, "height": 64, "length": 9, "steps": 4, "batch_size": 1, "end_at_step": 2, "start_at_step": 2}
BLOCKS = {"double_blocks": "1", "single_blocks": "1"}


def shrunk(workflow):
    """A workflow for tiny networks: fewer blocks, pixels and steps, and nothing but latents in the end."""
    small = {number: {**node, "inputs": dict(node["inputs"])} for number, node in workflow.items()}
    for number, node in workflow.items():
        if node["class_type"] in ("SaveVideo", "SaveImage", "CreateVideo"):
            del small[number]
            continue
        inputs = small[number]["inputs"]
        inputs |= {name: value for name, value in SMALL.items() if inputs.get(name)}
        if inputs.get("end_at_step") and inputs["start_at_step"] == 2:
            inputs["end_at_step"] = 10000
        if node["class_type"] == "W2SDSkipLayers":
            inputs |= {name: value for name, value in BLOCKS.items() if inputs[name]}
        for name in ("clip_vision_output", "tile_size", "overlap", "temporal_size", "temporal_overlap"):
            inputs.pop(name, None)
    return small


def executed(workflow, server):
    """Post a workflow, as the server does."""
    valid, error, outputs, node_errors = validated(workflow)
    assert valid, (error, node_errors)
    Kept.samples.clear()
    executor = execution.PromptExecutor(server, cache_args={"lru": 0, "ram": 0})
    executor.execute(workflow, "test", {"client_id": "test"}, outputs)
    errors = [data for event, data in server.sent if event == "execution_error"]
    return executor.success, errors, list(Kept.samples)


@each_workflow
def test_a_workflow_is_executed(workflow, monkeypatch):
    make = NETWORKS[next(name for name in NETWORKS if workflow.stem.startswith(name))]
    small = shrunk(read(workflow))
    results = {}
    for preset in ("on", "off"):
        for name, node in tiny(make).items():
            monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
        for node in small.values():
            if preset == "off" and node["class_type"] == "W2SDPresets":
                node["inputs"]["preset"] = "off"
            if preset == "off" and node["class_type"] == "W2SDSettings":
                node["inputs"]["stop"] = 0.0
        success, errors, samples = executed(small, Server())
        assert success and len(samples) == 1, errors
        results[preset] = samples[0]
    assert results["on"].isfinite().all() and results["on"].shape == results["off"].shape
    assert not torch.equal(results["on"], results["off"])


def test_an_error_of_a_sampling_is_shown_on_its_node(monkeypatch):
    for name, node in tiny(networks.wan).items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
    workflow = shrunk(read(ROOT / "examples" / "comfyui" / "wan21-t2v-skip-layers.json"))
    number = next(number for number, node in workflow.items() if node["class_type"] == "SamplerCustomAdvanced")
    skipping = next(node for node in workflow.values() if node["class_type"] == "W2SDSkipLayers")
    skipping["inputs"]["double_blocks"] = "40"
    server = Server()
    success, (error,), _ = executed(workflow, server)
    assert not success and error["node_id"] == number
    assert "WAN21 has no double_block 40 that can be skipped" in error["exception_message"]


def test_the_classic_mapping_and_the_entry_point_have_the_same_nodes():
    from w2sd_video.backends import comfyui

    extension = asyncio.run(comfyui.comfy_entrypoint())
    of_entry_point = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
    assert of_entry_point == comfyui.NODE_CLASS_MAPPINGS and set(of_entry_point) == set(OURS)


CLONED = """
import asyncio, os, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = [folder for folder in sys.path if folder not in ("", sys.argv[1])]
sys.path.insert(0, sys.argv[2])
import conftest, nodes
assert asyncio.run(nodes.load_custom_node(sys.argv[3]))
import w2sd_video
assert not {"diffusers", "accelerate", "peft", "matplotlib"} & set(sys.modules)
print(w2sd_video.__path__[0], *sorted(name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("W2SD")))
"""


def test_a_clone_in_custom_nodes_is_found_without_an_installation(tmp_path):
    clone = tmp_path / "custom_nodes" / "w2sd-video"
    clone.mkdir(parents=True)
    for name in ("__init__.py", "w2sd_video", "backends", "configs", "tests", "examples"):
        (clone / name).symlink_to(ROOT / name)
    (clone / "__init__.py").unlink()
    (clone / "__init__.py").write_bytes((ROOT / "__init__.py").read_bytes())
    arguments = [str(ROOT), str(Path(__file__).parent), str(clone)]
    run = subprocess.run(
        [sys.executable, "-c", CLONED, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert run.returncode == 0, run.stderr
    folder, *names = run.stdout.splitlines()[-1].split()
    assert Path(folder) == clone / "w2sd_video" and names == OURS
