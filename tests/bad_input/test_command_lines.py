"""Wrong command lines: each is answered in one line that names what is wrong, and leaves nothing behind."""

import json
import os
import pickle
import re
import typing
from importlib import import_module
from pathlib import Path

import pytest
from commands import ended

from w2sd_video.settings.schema import BranchConfig, ModelConfig, RenderConfig

LONG = "a" * 300
RED = "a red circle moving left"
NOT_NULL = ("steps", "seed", "fps", "rounds", "span", "strength", "inversion", "device", "dtype", "call", "strong")
FILES = {
    "twice.yaml": "steps: 3\nsteps: 4\n",
    "twice.json": '{"steps": 3, "steps": 4}',
    "deep.yaml": "steps: " + "[" * 3000 + "]" * 3000,
    "deep.json": "[" * 100000,
    "loop.yaml": "call: &a {x: *a}",
    "laughs.yaml": "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "\n".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
    "object.yaml": "steps: !!python/object:os.system {}",
    "two.yaml": "steps: 3\n---\nsteps: 4\n",
    "tab.yaml": "model:\n\tfamily: x\n",
    "nan.yaml": "model: {pretrained: 'miniature:pixart'}\nprompts: [x]\nautoguidance: .nan\n",
    "inf.yaml": "model: {pretrained: 'miniature:pixart', parameters: {vae: .inf}}\nprompts: [x]\n",
    "call_nan.yaml": "model: {pretrained: 'miniature:pixart'}\nprompts: [x]\ncall: {eta: .nan}\n",
    "date.yaml": "steps: 2020-13-45\n",
    **{f"null_{name}.yaml": f"{name}: null\n" for name in NOT_NULL},
    "empty.yaml": "",
    "empty.json": "",
    "number.yaml": "3",
    "list.json": "[1]",
    "nan.json": '{"autoguidance": NaN}',
    "key.yaml": "? [1, 2]\n: 3\n",
    "strong.yaml": "strong: [1]\n",
    "quoted.yaml": "model: {pretrained: 'miniature:pixart'}\nprompts: [x]\nstrength: '0.5'\n",
    "window_of_one.yaml": "model: {pretrained: 'miniature:pixart'}\nprompts: [x]\nweak: {windows: {1: [0, 1]}}\n",
    "s500.json": '{"log_snr": [-1, 1], "strength": [500, 1]}',
    "snan.json": '{"log_snr": [-1, 1], "strength": [NaN, 1]}',
    "slist.json": "[1, 2]",
    "sdict.json": '{"log_snr": {"a": 1}, "strength": 3}',
    "sfall.json": '{"log_snr": [1, -1], "strength": [1, 1]}',
    "stext.json": '{"log_snr": ["a"], "strength": [1]}',
    "sdeep.json": "[" * 100000,
    "comments.txt": "# nothing\n\n",
    "bad.png": "no picture",
    "ugly.jsonl": '{"prompt": "a red circle moving left", "negative_prompt": "ugly"}',
    "blank.yaml": "model: {pretrained: 'miniature:pixart'}\nprompts: [x]\noutput: ' '\n",
    "blank_weights.yaml": "model: {pretrained: 'miniature:pixart', weights: {w: ''}}\nprompts: [x]\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with files of every bad kind."""
    folder = tmp_path_factory.mktemp("bad")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "binary.txt").write_bytes(bytes(range(128, 256)))
    (folder / "null.txt").write_bytes(b"a\0b\n")
    (folder / "bad.mp4").write_bytes(bytes(range(256)) * 20)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    (folder / "evil.pt").write_bytes(pickle.dumps(print))
    (folder / "empty").mkdir()
    (folder / "clips").mkdir()
    (folder / "clips" / "a.mp4").write_bytes(b"no video")
    (folder / "clips" / "a.txt").write_text(RED)
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


TABLE = [
    # configurations
    ("render --config {LONG}", "cannot be read as text: aaa"),
    ("render --config miniature-animatdiff", "no such file; did you mean 'miniature-animatediff'?"),
    ("render --config nothing", "the packaged ones are"),
    ("render --config .", "config .: cannot be read as text: Is a directory"),
    ("render --config /dev/zero", "longer than 64 MiB"),
    ("render --config binary.txt", "is not text in UTF-8"),
    ("render --config null.txt", "holds null characters"),
    ("render --config twice.yaml", "the key 'steps' is there twice (line 1)"),
    ("render --config twice.json", "the key 'steps' is there twice"),
    ("render --config deep.yaml", "it nests too deep"),
    ("render --config deep.json", "it nests too deep"),
    ("render --config loop.yaml", "its aliases repeat too much"),
    ("render --config laughs.yaml", "its aliases repeat too much"),
    ("render --config object.yaml", "could not determine a constructor for the tag"),
    ("render --config two.yaml", "but found another document"),
    ("render --config tab.yaml", "found character '\\t'"),
    ("render --config nan.yaml", "autoguidance nan: must be a finite number"),
    ("render --config inf.yaml", "model.parameters.vae inf: must be a finite number"),
    ("render --config call_nan.yaml", "call.eta nan: must be a finite number"),
    ("render --config date.yaml", "not valid YAML or JSON: month must be"),
    *[(f"render --config null_{name}.yaml", f"{name}: must not be null") for name in NOT_NULL],
    ("render --config empty.yaml", "model.pretrained: is needed"),
    ("render --config empty.json", "not valid YAML or JSON"),
    ("render --config number.yaml", "must be a mapping of keys to values"),
    ("render --config list.json", "must be a mapping of keys to values"),
    ("render --config nan.json", "NaN is there, which must be a finite number"),
    ("render --config key.yaml", "unhashable key"),
    ("render --config strong.yaml", "strong: must be a mapping of keys to values"),
    ("render --config", "expected one argument"),
    # prompts
    ("render --prompts /dev/zero", "longer than 64 MiB"),
    ("render --prompts {LONG}", "File name too long"),
    ("render --prompts binary.txt", "is not text"),
    ("render --prompts null.txt", "null characters"),
    ("render --prompts comments.txt", "holds no prompt"),
    ("render --prompts empty", "Is a directory"),
    ("render --prompts nothing.txt", "No such file"),
    ("render|", "'' is not a text"),
    ("render|a\0b", "holds a null character"),
    ("render|a\udcffb", "bytes that are not UTF-8"),
    ("render|a purple circle moving left", "unknown word 'purple'"),
    ("render|a red circle", "names no direction"),
    ("render|A red circle moving left", "'A' in 'A red circle moving left': this network knows words in small letters"),
    ("render --config miniature-scenes-pixart|a red circle moving left above something.", "'something.' in"),
    ("render --config miniature-pixart --call.negative_prompt ugly", "unknown word 'ugly'"),
    ("render --prompts ugly.jsonl -o x/", "unknown word 'ugly'"),
    ("render --config miniature-fashion 57", "use a number from 0 to 9, or a name: t-shirt, trouser"),
    ("render --config miniature-fashion-two 1", "use a number from 0 to 0, or a name: trouser or sneaker"),
    ("render --config blank.yaml", "output: is given a blank, which names nothing"),
    ("render --config blank_weights.yaml", "model.weights.w: is given a blank"),
    # outputs
    ("render -o {LONG}", "is too long a name; at most 220 bytes"),
    ("render -o {LONG}.mp4", "is too long a name"),
    ("render -o {LONG}/x.mp4", "File name too long"),
    ("render -o /dev/full", "is a file, but a name without ending means a folder"),
    ("render -o nothing/x.mp4", "create it first: mkdir -p nothing"),
    ("render -o bad.png/x.mp4", "cannot write into bad.png"),
    ("render -o x.avi", "unknown ending '.avi'"),
    ("render -o|a\0b.mp4", "holds a null character"),
    ("render -o", "expected one argument"),
    # strength
    ("render --strength nan", "strength nan: must be from -10 to 10, or the name of a file"),
    ("render --strength=-inf", "strength -inf: must be from -10 to 10"),
    ("render --strength 11", "strength 11.0: must be from -10 to 10"),
    ("render --strength s500.json", "holds 500; each must be from -10 to 10"),
    ("render --strength snan.json", "NaN is there, which must be a finite number"),
    ("render --strength slist.json", "it needs the lists log_snr and strength"),
    ("render --strength sdict.json", "it needs the lists log_snr and strength"),
    ("render --strength sfall.json", "must rise"),
    ("render --strength stext.json", "must be a number, got 'a'"),
    ("render --strength sdeep.json", "it nests too deep"),
    ("render --strength binary.txt", "is not text"),
    ("render --strength /dev/zero", "longer than 64 MiB"),
    ("render --strength {LONG}", "File name too long"),
    ("render --strength .", "Is a directory"),
    ("render --strength much", "give a number from -10 to 10, or a file that calibrate wrote"),
    # devices
    ("render --device meta", "device 'meta': is no device"),
    ("render --device cudda --dry-run", "device 'cudda': is no device"),
    ("render --device gpu --dry-run", "device 'gpu': is no device"),
    ("render --device cpu:7 --dry-run", "device 'cpu:7': is no device"),
    ("render --device vulkan", "device 'vulkan': is no device"),
    ("render --device|", "device '': is no device"),
    ("render --device cuda:99 -o x.mp4", "not available on this machine; use auto or cpu"),
    # numbers
    ("render --span 100 --steps 10", "span 100: must be from 1 to 10, the number of steps"),
    ("render --span 100 --steps 10 --reflection-steps 0", "span 100: must be from 1 to 10"),
    ("render --seed 99999999999999999999999", "seed 99999999999999999999999: must be from 0"),
    ("render --seed 1e3", "must be a whole number"),
    ("render --steps 1e400", "must be a whole number"),
    ("render --steps ٣x", "must be a whole number"),
    ("render --reflection-steps [nan,1]", "must be a whole number or a pair of numbers"),
    ("render --strong.lora.x nan", "strong.lora.x 'nan': must be a number"),
    ("render --model.parameters.vae -5", "model.parameters.vae -5.0: must be above 0"),
    ("render --call.eta nan", "call.eta nan: must be a finite number"),
    ("render --call.eta=-Infinity", "call.eta -Infinity: must be a finite number"),
    # options
    ("render --stepz 3", "unknown option --stepz; did you mean '--steps'?"),
    ("render --steps", "expected one argument"),
    ("render --preset best", "must be one of paper, recommended, fast"),
    ("render --compare=maybe", "--compare"),
    ("render --weak.skip-layers|a red circle moving left", "must be a list"),
    # models
    ("render --model.pretrained a/b/c", "no such folder, and not a hub id like 'owner/name'"),
    ("render --model.family pipeline --model.pretrained a/b@main --dry-run", "no id on the hub"),
    ("render|--model.family|pipeline|--model.pretrained|a b/c|--dry-run", "no id on the hub"),
    ("render --model.family pipeline --model.pretrained a--b/c --dry-run", "no id on the hub"),
    ("render --model.family pipeline --model.pretrained x/{LONG} --dry-run", "no id on the hub"),
    ("render --model.family pipeline --model.pretrained {LONG}/x --dry-run", "File name too long"),
    ("render --model.family pipeline --model.pretrained ~nobody/x --dry-run", "model '~nobody/x'"),
    ("render --model.pretrained /{LONG}", "File name too long"),
    ("render|--model.pretrained|a\0b/c", "holds a null character"),
    ("render --model.pretrained miniature:", "no such miniature"),
    ("render --model.pretrained miniature:../..", "no such miniature"),
    ("render --model.pretrained miniature:pixrat", "did you mean 'pixart'?"),
    ("render --model.weights.w miniature:pixart/../.. --weak.weights w", "no such miniature"),
    ("render --model.lora.x a/../../b.safetensors --strong.lora.x 1", "no id on the hub"),
    ("render --model.lora.x a/b/../c.safetensors --strong.lora.x 1", "no such file, and no name of one on the hub"),
    ("render --model.lora.x bad.safetensors --strong.lora.x 1 -o x.mp4", "Unable to load weights"),
    ("render --model.lora.x evil.pt --strong.lora.x 1 -o x.mp4", "convert it to .safetensors"),
    ("render --model.weights.w bad.safetensors --weak.weights w -o x.mp4", "model miniature:animatediff: "),
    (
        "render --model.weights.w bad.safetensors --weak.weights w --dry-run",
        "is truncated; get it again",
    ),
    ("render --model.weights.w empty --weak.weights w -o x.mp4", "holds no denoiser"),
    ("render --config miniature-pixart --model.pretrained empty -o x.png", "has no model_index.json"),
    ("render --config miniature-pixart --model.scheduler Foo -o x.png", "diffusers has no scheduler 'Foo'"),
    ("render --config miniature-pixart --model.components.foo a/b -o x.png", "has no component 'foo'"),
    ("render --config miniature-pixart --model.components.vae empty -o x.png", "model miniature:pixart: "),
    ("render --config miniature-pixart --model.components.vae bad.safetensors -o x.png", "model miniature:pixart: "),
    ("render --model.memory offload -o x.mp4", "the device is the CPU"),
    ("render --model.attention xformers -o x.mp4", "needs a CUDA device"),
    ("render --model.variant fp99 -o x.mp4", "variant=fp99"),
    # inputs
    ("render --inputs.image bad.png", "not a picture that can be decoded"),
    ("render --inputs.image nothing.png", "no such picture file"),
    ("render --inputs.image empty", "is a folder, no picture file"),
    ("render --inputs.image {LONG}.png", "cannot be read: File name too long"),
    ("render --config miniature-animatediff-control --inputs.conditioning_frames bad.mp4", "not a video that can"),
    ("render --config miniature-animatediff-control --inputs.conditioning_frames empty.mp4", "not a video that can"),
    ("render --config miniature-animatediff-control", "inputs.conditioning_frames: is needed"),
    ("render --inputs.prompt bad.png", "inputs.prompt: is set elsewhere"),
    # what a pipeline is called with
    ("render --config miniature-pixart -o x.png --call.colour red", "takes no such argument"),
    ("render --config miniature-pixart -o x.png --call.max_sequence_length -1", "call.max_sequence_length -1"),
    ("render --config miniature-pixart -o x.png --call.eta x --steps 2", "call.eta x"),
    (
        "render --config miniature-pixart -o x.png --call.negative_prompt 3 --base.guidance-scale 2",
        "call.negative_prompt 3",
    ),
    ("render --config miniature-pixart -o x.png --call.prompt_embeds 3 --steps 2", "call.prompt_embeds 3"),
    ("render --config miniature-pixart -o x.png --call.callback 3 --steps 2", "call.callback 3"),
    (
        "render --call.clip_skip 100 -o x.mp4 --steps 2",
        "cannot be called with steps 2, call.clip_skip 100",
    ),
    ("render --weak.skip-layers [99] -o x.mp4 --steps 2", "has 11 blocks"),
    # evaluate
    ("evaluate --arms nobody", "unknown arm 'nobody'"),
    ("evaluate --arms W2SD|a red circle moving left", "a prompt goes before --arms"),
    ("evaluate --arms", "expected at least one argument"),
    ("evaluate --against nobody", "unknown arm 'nobody'"),
    ("evaluate --stepz 3", "unknown option --stepz"),
    ("evaluate --budgets x", "--budgets 'x': must be a whole number"),
    ("evaluate --budgets 40|a red circle moving left", "prompts go before an option of several values"),
    ("evaluate --budgets 0", "budgets 0: must be from 1"),
    ("evaluate --metrics beauty", "unknown metric 'beauty'"),
    ("evaluate --metrics clip_score=", "clip_score=: its source is given a blank"),
    ("evaluate --metrics clip_score=empty", "select clip_score: clip_score cannot be loaded from 'empty'"),
    ("evaluate --metrics adherence --select fid", "select fid: is not among the metrics"),
    ("evaluate --batch 0", "batch 0: must be from 1 to 1024"),
    ("evaluate --number-of-prompts 2.5", "must be a whole number"),
    ("evaluate --number-of-prompts 100000", "number_of_prompts 100000: must be from 1"),
    ("evaluate --config nothing", "unknown config 'nothing'"),
    ("evaluate --real {LONG}", "File name too long"),
    ("evaluate --device meta", "device 'meta': is no device"),
    # calibrate
    (
        "render|--reflection-steps|{start: 2, stop: 1}",
        "a window of steps must be (start, stop) with 0 <= start <= stop",
    ),
    ("render|--reflection-steps|{start: 0}", "reflection_steps {start=0.0, stop=None, unit='steps'}: must be a whole"),
    ("render|--reflection-steps|{start: 0, stop: 1, unit: step}", "reflection_steps {'start': 0, 'stop': 1, 'unit'"),
    ("render|--reflection-steps|{start: 0, end: 1}", "reflection_steps {'start': 0, 'end': 1}: must be a whole number"),
    ("render --config window_of_one.yaml", "weak: windows has 1, which is no field that this branch sets"),
    ("calibrate|--config|miniature-pixart|--window|[0.5, 0.52]", "window [0.5, 0.52]: none of 10 steps is in it"),
    ("calibrate|--window|{start: 0}", "w2sd_video.calibrate: reflection_steps {start=0.0"),
    ("calibrate --draws x", "--draws 'x': must be a whole number"),
    ("calibrate --draws 0", "draws 0: must be from 1 to 1000"),
    ("calibrate --draws 99999999999999999999", "must be from 1 to 1000"),
    ("calibrate --clips {LONG}", "File name too long"),
    ("calibrate --clips nothing", "no such folder"),
    ("calibrate --clips empty", "holds no clips"),
    ("calibrate --clips clips", "at least 8 are needed"),
    ("calibrate -o /dev/full", "exists and is no calibration"),
    ("calibrate -o /dev/zero", "exists and is no calibration"),
    ("calibrate -o {LONG}", "is too long a name"),
    ("calibrate -o nothing/x.json", "there is no folder nothing"),
    ("calibrate -o s500.json", "exists and is no calibration"),
    ("calibrate -o", "expected one argument"),
    ("calibrate --ideal x", "--ideal 'x': must be a whole number"),
    ("calibrate --config nothing", "unknown config 'nothing'"),
    ("calibrate --device meta", "device 'meta': is no device"),
    # the rest
    ("__main__", "the following arguments are required: COMMAND"),
    ("__main__ rendre", "invalid choice: 'rendre'"),
    ("__main__ --foo", "required: COMMAND"),
    ("__main__ render --foo", "unknown option --foo"),
    ("miniatures.train", "--out: name a folder"),
    ("miniatures.train --out x --stage nothing", "unknown stage 'nothing'"),
    ("miniatures.train --out x --scale nan --stage classifier", "--scale nan: must be above 0"),
    ("miniatures.train --out x --scale -1 --stage classifier", "--scale -1.0: must be above 0"),
    ("miniatures.train --out x --threads 0 --stage classifier", "--threads 0: must be from 1"),
    ("miniatures.train --out x --threads x", "--threads 'x': must be a whole number"),
]


def words_of(line):
    head, *rest = line.replace("{LONG}", LONG).split("|")
    return [*head.split(), *rest]


@pytest.mark.parametrize(("line", "said"), TABLE, ids=[line[:60].replace("\0", "0") for line, _ in TABLE])
def test_a_wrong_command_line_is_answered_in_one_line(line, said, here, capfd):
    command, *argv = words_of(line)
    code, answer = ended(capfd, command, *argv)
    assert code and said in answer, answer
    assert len(answer) < 700


@pytest.mark.parametrize("command", ["render", "evaluate", "calibrate", "tune", "studio", "miniatures.train"])
def test_an_option_that_is_given_a_blank_is_refused(command, here, capfd):
    """A shell gives one for a variable that is not set, and none is what it would be without the option."""
    with pytest.raises(SystemExit):
        import_module(f"w2sd_video.{command}").main(["--help"])
    shown = capfd.readouterr().out
    taking = sorted({name for name in re.findall(r"^ +(?:-o [A-Z]+, |-o, )?(--[a-z._-]+) ", shown, re.M)})
    switches = {"--help", "--version", "--dry-run", "--print-config", "--no-samples", "--last-run", "--compile"}
    mappings = {f"--{name}" for name in ("call", "inputs", "model", "base", "strong", "weak")}
    named = [name for name in taking if name not in {*switches, *mappings} and not name.endswith(("prompt", "compare"))]
    assert len(named) > 3
    for words in ([f"{name}{given}"] if given else [name, " "] for name in named for given in ("=", "")):
        code, said = ended(capfd, command, *words)
        assert code == 2 and said.startswith(f"w2sd_video.{command}: "), (words, said)


ODD = ["nan", "inf", "-inf", "1e400", "-1", "1e30", "9" * 40, "x", "", "[]", "{}", "null", "true", "[1, nan]", "a\nb"]
"""Values of which most options take none; where one does, a plan is made of it, or it is refused."""
ODD += [LONG, "{a: {b: c}}", "!!python/none", "0x10", "1_000", "01", "٣", "~", "-", "--", "*", "&a", "'", "%"]


def options():
    """Return every option that a configuration has."""
    names = []
    for field in typing.get_type_hints(RenderConfig):
        inner = {"model": ModelConfig, "base": BranchConfig, "strong": BranchConfig, "weak": BranchConfig}.get(field)
        names += [f"--{field}.{part}" for part in typing.get_type_hints(inner)] if inner else [f"--{field}"]
    mappings = [f"--{name}.x" for name in ("call", "inputs", "model.weights", "model.lora", "strong.lora")]
    return [name for name in names if name not in ("--prompts", "--call", "--inputs")] + mappings


PAIRS = [(option, value) for option in options() for value in ODD]


def check_odd_value(option, value, capfd):
    code, answer = ended(capfd, "render", "--config", "miniature-pixart", f"{option}={value}", "--dry-run")
    if value in ("nan", "inf", "-inf", "1e400", "[1, nan]") and option.lstrip("-").split(".")[-1] not in TEXTS:
        assert code == 2, "a number that is not finite is accepted"
    assert code in (0, 1, 2), answer
    assert len(answer) < 1000


LAYERS = ("skip_layers", "perturbed_layers")
TEXTS = (
    "prompt",
    "negative_prompt",
    "output",
    "variant",
    "scheduler",
    "size",
    "vae",
    "controlnet",
    "x",
    "inputs",
    *LAYERS,
)
"""Options that take any text, of which "nan" is one."""


@pytest.mark.parametrize(("option", "value"), PAIRS[::7])
def test_an_odd_value_is_planned_or_refused(option, value, here, capfd):
    check_odd_value(option, value, capfd)


@pytest.mark.thorough
@pytest.mark.parametrize(("option", "value"), PAIRS)
def test_every_odd_value_of_every_option_is_planned_or_refused(option, value, here, capfd):
    check_odd_value(option, value, capfd)


def test_what_is_right_is_not_refused(here, capfd):
    Path("marked.txt").write_bytes(b"\xef\xbb\xbfa red circle moving left\r\na blue circle moving up\r\n")
    Path("small.yaml").write_text(
        "model: {pretrained: 'miniature:pixart'}\nheight: 32\nwidth: 32\ncall: {use_resolution_binning: false}\n"
        "prompts: [a red circle moving left]\n"
    )
    Path("numbers.yaml").write_text(Path("small.yaml").read_text() + "strength: 1e-1\nautoguidance: 5e-1\n")
    try:
        for argv in (
            ["--config", "small.yaml"],
            ["--config", "numbers.yaml"],
            ["--prompts", "marked.txt"],
            ["a blue circle moving up", "-o", "x.mp4", RED],
            ["--compare", RED],
            ["--strength", "-1", RED],
            ["--strength", "1e-1", RED],
            ["--device", "cuda"],
            ["--device", "cpu:0"],
            ["--span", "10", "--steps", "10"],
        ):
            assert ended(capfd, "render", *argv, "--dry-run") == (0, ""), argv
    finally:
        for name in ("marked.txt", "small.yaml", "numbers.yaml"):
            os.remove(name)


def test_a_device_that_this_machine_has_not_is_said_in_a_plan(here, capsys):
    from w2sd_video.render import main

    assert main(["--device", "xpu", "--dry-run"]) == 0
    assert "device   xpu: not on this machine" in capsys.readouterr().out
    assert main(["--dry-run"]) == 0
    assert "device " not in capsys.readouterr().out


def test_prompts_stand_anywhere(here, capsys):
    from w2sd_video.render import main

    blue = "a blue circle moving up"
    assert main([blue, "-o", "x.mp4", RED, "--compare", blue, "--strength", "-1", "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert json.dumps(shown).count("circle") == 3 and "compare: true" in shown and "strength: -1.0" in shown
    assert shown.index(blue) < shown.index(RED)
