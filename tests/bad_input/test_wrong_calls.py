"""Wrong calls of public functions: each raises TypeError or ValueError that names what is wrong."""

# ruff: noqa: E501 -- a table, a call a line

import math
import re

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler

from w2sd_video import Branch, Level, Reflection, StrengthSchedule, Trajectory, reflect, reflection, sample
from w2sd_video.guidance import guided
from w2sd_video.metrics import METRICS, Distance, Score, load_metric
from w2sd_video.metrics.frechet import frechet_distance
from w2sd_video.miniatures import judges, world
from w2sd_video.rendering.video import read_picture, read_video, to_uint8, write_picture, write_video

RED = "a red circle moving left"
SCHEDULER = DDIMScheduler()
SCHEDULER.set_timesteps(5)
UNCLIPPED = DDIMScheduler(clip_sample=False)
T = Trajectory(SCHEDULER)
X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NAN = torch.where(X == X.max(), torch.nan, X)
CLIPS = np.zeros((2, 8, 32, 32, 3), np.uint8)
SCORE = Score("s", True, lambda clips, prompts: np.zeros(len(clips)))
DISTANCE = Distance("d", False, lambda clips: clips.reshape(len(clips), -1).astype(float), frechet_distance)


def predict(latents, timestep, role):
    return 0.1 * latents


def sampled(latents=X, **settings):
    return sample(settings.pop("predict", predict), latents, SCHEDULER, **{"num_inference_steps": 4} | settings)


def same(latents, t):
    return latents


def in_place(latents, timestep, role):
    return latents.mul_(0.1)


@pytest.fixture(scope="module")
def pipe():
    return tiny.stable_diffusion()


TENSORS = {
    "integers": (X.long(), TypeError, "floating-point tensor"),
    "truth values": (X > 0, TypeError, "floating-point tensor"),
    "complex numbers": (X.to(torch.complex64), TypeError, "floating-point tensor"),
    "an array": (X.numpy(), TypeError, "floating-point tensor"),
    "a list": ([1.0], TypeError, "floating-point tensor"),
    "nothing": (None, TypeError, "floating-point tensor"),
    "a text": ("x", TypeError, "floating-point tensor"),
}
TAKE_LATENTS = {
    "denoise": lambda bad: T.denoise(bad, X, 0),
    "denoise with": lambda bad: T.denoise(X, bad, 0),
    "invert": lambda bad: T.invert(bad, X, 0),
    "invert with": lambda bad: T.invert(X, bad, 0),
    "reflect": lambda bad: T.reflect(bad, X, X, 0),
    "reflect strong": lambda bad: T.reflect(X, bad, X, 0),
    "reflect weak": lambda bad: T.reflect(X, X, bad, 0),
    "renoise": lambda bad: T.renoise(bad, X, 0),
    "renoise with": lambda bad: T.renoise(X, bad, 0),
    "read": lambda bad: T.read(bad, X, at=T.level(0), told_level=T.level(0), reading="sample"),
    "sample": lambda bad: sampled(bad),
    "the operator": lambda bad: reflect(same, same, bad, 0),
    "guided": lambda bad: guided(bad, X, 2.0),
    "guided from": lambda bad: guided(X, bad, 2.0),
}
FRAMES = {
    "floats": (CLIPS / 255, TypeError, "of uint8"),
    "integers": (CLIPS.astype(int), TypeError, "of uint8"),
    "a tensor": (torch.zeros(2, 8, 32, 32, 3, dtype=torch.uint8), TypeError, "of uint8"),
    "a list": (CLIPS.tolist(), TypeError, "of uint8"),
    "nothing": (None, TypeError, "of uint8"),
    "one clip": (CLIPS[0], ValueError, "each at least 1"),
    "a channel": (CLIPS[..., :1], ValueError, "each at least 1"),
    "channels first": (np.moveaxis(CLIPS, -1, 2), ValueError, "each at least 1"),
    "no clips": (CLIPS[:0], ValueError, "each at least 1"),
    "no frames": (CLIPS[:, :0], ValueError, "each at least 1"),
    "no pixels": (CLIPS[:, :, :0], ValueError, "each at least 1"),
}
STEPS = {
    "below": (-1, ValueError),
    "above": (5, ValueError),
    "far above": (99, ValueError),
    "a fraction": (1.5, ValueError),
    "a float": (1.0, ValueError),
    "a truth value": (True, TypeError),
    "a text": ("a", TypeError),
    "nothing": (None, TypeError),
}
TAKE_STEPS = {
    "denoise": lambda i: T.denoise(X, X, i),
    "invert": lambda i: T.invert(X, X, i),
    "reflect": lambda i: T.reflect(X, X, X, i),
    "renoise": lambda i: T.renoise(X, X, 99 if i == 5 else i),
    "next_level": lambda i: T.next_level(i),
    "level": lambda i: T.level(99 if i == 5 else i),
    "score_reading": lambda i: T.score_reading(99 if i == 5 else i),
}
CALLS = [
    *[(f"span {span} of {name}", call, ValueError, "span") for span in (0, 9, 1.5) for name, call in {
        "denoise": lambda span=span: T.denoise(X, X, 0, span=span),
        "invert": lambda span=span: T.invert(X, X, 0, span=span),
        "reflect": lambda span=span: T.reflect(X, X, X, 0, span=span),
        "renoise": lambda span=span: T.renoise(X, X, 0, span=span),
        "sample": lambda span=span: sampled(span=span),
        "sample that reflects nothing": lambda span=span: sampled(span=span, reflection_steps=0),
    }.items()],
    *[(f"{name} of another shape", call, ValueError, "shape") for name, call in {
        "denoise": lambda: T.denoise(X, X[:, :1], 0),
        "invert": lambda: T.invert(X, X[:, :2], 0),
        "reflect": lambda: T.reflect(X, X, X[:, :1], 0),
        "renoise": lambda: T.renoise(X, X[:, :1], 0),
        "guided": lambda: guided(X, X[:, :1], 2.0),
        "sample": lambda: sampled(predict=lambda x, t, r: x[:, :1]),
    }.items()],
    *[(f"{setting} {value}", lambda s=setting, v=value: sampled(**{s: v}), error, setting)
      for setting, value, error in [
        ("strength", math.nan, ValueError), ("strength", math.inf, ValueError), ("strength", None, TypeError),
        ("strength", [1], TypeError), ("strength", "nofile", ValueError), ("strength", "/dev/zero", ValueError),
        ("strength", "/", ValueError), ("rounds", 0, ValueError), ("rounds", 1.5, ValueError),
        ("rounds", True, TypeError), ("iterations", 0, ValueError), ("inversion", "x", ValueError),
        ("inversion", None, ValueError), ("inversion", [], ValueError), ("autoguidance", math.inf, ValueError),
        ("reflection_steps", 9, ValueError), ("reflection_steps", -1, ValueError),
        ("reflection_steps", 2.5, ValueError), ("reflection_steps", True, ValueError),
        ("reflection_steps", "all", ValueError), ("reflection_steps", (0, 2), ValueError),
        ("reflection_steps", (0, math.nan), ValueError), ("reflection_steps", (0, 0.1, 0.2), ValueError),
        ("num_inference_steps", 0, ValueError), ("num_inference_steps", 4.0, ValueError),
        ("num_inference_steps", True, TypeError), ("num_inference_steps", 5000, ValueError),
        ("generator", 3, TypeError), ("generator", [torch.Generator()] * 3, ValueError),
        ("generator", [None], TypeError), ("callback", 3, TypeError), ("predict", None, TypeError),
    ]],
    ("NaN in the noise", lambda: sampled(NAN), ValueError, "latents must be finite"),
    ("NaN predicted", lambda: sampled(predict=lambda x, t, r: x * math.nan), ValueError, "non-finite"),
    ("NaN predicted last", lambda: sampled(predict=lambda x, t, r: x * (math.nan if t < 9 else 1)), ValueError, "3 ret"),
    ("what overflows", lambda: sample(lambda x, t, r: torch.full_like(x, 3e38), X, UNCLIPPED, num_inference_steps=4, reflection_steps=0), ValueError, "the last step returned non-finite"),
    ("halves that overflow", lambda: sample(lambda x, t, r: torch.full_like(x, 6e4), X.half(), UNCLIPPED, num_inference_steps=4, reflection_steps=0), ValueError, "the last step returned non-finite"),
    ("a prediction of truth values", lambda: sampled(predict=lambda x, t, r: x > 0), ValueError, "dtype"),
    ("no prediction", lambda: sampled(predict=lambda x, t, r: None), ValueError, "must return a tensor"),
    ("a prediction in place", lambda: sampled(predict=in_place), ValueError, "in place"),
    ("no scheduler", lambda: sample(predict, X, None), TypeError, "is not a scheduler"),
    ("a scheduler's class", lambda: sample(predict, X, DDIMScheduler), TypeError, "is not a scheduler"),
    ("a scheduler without timesteps", lambda: sample(predict, X, DDIMScheduler()), ValueError, "set_timesteps"),
    ("no scheduler of a trajectory", lambda: Trajectory(None), TypeError, "is not a scheduler"),
    ("strength NaN of a trajectory", lambda: T.reflect(X, X, X, 0, strength=math.nan), ValueError, "strength"),
    ("strength as text", lambda: T.reflect(X, X, X, 0, strength="1"), TypeError, "strength"),
    ("an unknown reading", lambda: T.reflect(X, X, X, 0, reading="x"), ValueError, "reading must be"),
    ("another unknown reading", lambda: T.read(X, X, at=T.level(0), told_level=T.level(0), reading="x"), ValueError, "read"),
    ("no step functions", lambda: reflect(None, None, X, 0), TypeError, "step_fn_strong must be a function"),
    ("the operator on NaN", lambda: reflect(same, same, NAN, 0), ValueError, "latents must be finite"),
    ("the operator that overflows", lambda: reflect(same, lambda x, t: 2 * x, X, 0, strength=1e300), ValueError, "finite"),
    ("a scale that is NaN", lambda: guided(X, X, math.nan), ValueError, "scale"),
    ("a scale as text", lambda: guided(X, X, "2"), TypeError, "scale"),
    *[(f"Branch {name} {value!r}", lambda n=name, v=value: Branch(**{n: v}), (TypeError, ValueError), name)
      for name, values in {
        "guidance_scale": [math.nan, (1, 2, 3), "3", True], "weights": [3, "", ("a", "b")],
        "lora": [[1], {1: 1.0}, {"a": math.nan}, {"a": "x"}, "a"], "prompt": [3, [], [3]],
        "negative_prompt": [3, [], {"a": 1}], "experts": [0, True, "some", 1.5], "control_scale": [math.nan, "x"],
        "ip_adapter_scale": [math.inf], "skip_layers": ["3", [], [True], [1.5], 3], "perturbed_layers": ["3", []],
      }.items() for value in values],
    ("steps of a fraction", lambda: Reflection().steps(1.5), ValueError, "number of steps"),
    ("steps below 0", lambda: Reflection().steps(-1), ValueError, "number of steps"),
    ("steps as text", lambda: Reflection().steps("a"), TypeError, "number of steps"),
    ("a span above the steps", lambda: Reflection(span=9).steps(5), ValueError, "span"),
    ("a schedule of NaN", lambda: StrengthSchedule((0.0,), (math.nan,)), ValueError, "finite"),
    ("a schedule of a number", lambda: StrengthSchedule(0, 1), TypeError, "numbers in order"),
    ("a schedule of nothing", lambda: StrengthSchedule(None, None), TypeError, "numbers in order"),
    ("a schedule of text", lambda: StrengthSchedule("12", "34"), TypeError, "must be a number"),
    ("a schedule that falls", lambda: StrengthSchedule((1, 0), (1, 1)), ValueError, "must rise"),
    ("a schedule at a tuple", lambda: StrengthSchedule((0.0,), (1.0,)).at((1, 2)), ValueError, "a level must be"),
    ("a schedule at NaN", lambda: StrengthSchedule((0.0,), (1.0,)).at(Level(math.nan, 1)), ValueError, "a level must be"),
    ("a schedule below 0", lambda: StrengthSchedule((0.0,), (1.0,)).at(Level(-1, 1)), ValueError, "a level must be"),
    ("prompts as one text", lambda: SCORE.of(CLIPS, RED), TypeError, "prompts must be a list"),
    ("prompts that are numbers", lambda: SCORE.of(CLIPS, [1, 2]), TypeError, "prompts must be a list"),
    ("too few prompts", lambda: SCORE.of(CLIPS, [RED]), ValueError, "1 prompts for 2 clips"),
    ("no real features", lambda: DISTANCE.between(np.zeros((3, 2)), None), ValueError, "compares with real clips"),
    ("features of NaN", lambda: DISTANCE.between(np.full((3, 2), np.nan), np.zeros((3, 2))), ValueError, "finite"),
    ("features of two widths", lambda: DISTANCE.between(np.zeros((3, 2)), np.zeros((3, 4))), ValueError, "(3, 2) and"),
    ("a row of features", lambda: DISTANCE.between(np.zeros(3), np.zeros((3, 4))), ValueError, "(n, d)"),
    ("one real row", lambda: frechet_distance(np.zeros((3, 2)), np.zeros((1, 2))), ValueError, "at least 2"),
    ("an unknown metric", lambda: load_metric("beauty"), ValueError, "unknown metric"),
    ("an unknown option", lambda: load_metric("flicker", size=3), ValueError, "has no option 'size'"),
    ("a judge given large floats", lambda: judges.logits(CLIPS + 3.0), ValueError, "numbers in [0, 1]"),
    ("a judge given negative floats", lambda: judges.logits(CLIPS - 1.0), ValueError, "numbers in [0, 1]"),
    ("a judge given integers", lambda: judges.features(CLIPS.astype(np.int64)), ValueError, "numbers in [0, 1]"),
    ("a judge given channels first", lambda: judges.features(np.moveaxis(CLIPS, -1, 2)), ValueError, "want clips"),
    ("a judge given short clips", lambda: judges.features(CLIPS[:, :3]), ValueError, "want clips"),
    ("an unknown word", lambda: world.parse("a purple circle moving left"), ValueError, "purple"),
    ("frames that are not finite", lambda: to_uint8(np.full((1, 2, 2, 3), np.nan)), ValueError, "not finite"),
    ("a video of floats", lambda: write_video("x.mp4", CLIPS[0] / 255), TypeError, "of uint8"),
    ("a video of 7 channels", lambda: write_video("x.mp4", np.zeros((3, 8, 8, 7), np.uint8)), ValueError, "frames must be"),
    ("a video of nothing", lambda: write_video("x.mp4", CLIPS[0][:0]), ValueError, "each at least 1"),
    *[(f"{fps} frames a second", lambda fps=fps: write_video("x.mp4", CLIPS[0], fps), (TypeError, ValueError), "fps")
      for fps in (0, -1, math.nan, math.inf, "8", None, 1e9)],
    ("a picture of floats", lambda: write_picture("x.png", CLIPS[0, 0] / 255), TypeError, "of uint8"),
    ("a picture of many", lambda: write_picture("x.png", CLIPS[0]), ValueError, "picture must be"),
    ("a folder as a video", lambda: read_video("."), OSError, "is a folder, no video file"),
    ("no such picture", lambda: read_picture("nothing.png"), OSError, "no such picture file"),
    ("a picture of too long a name", lambda: read_picture("a" * 300), OSError, "cannot be read"),
    ("a video with a null in its name", lambda: read_video("a\0b"), OSError, "no such video"),
]  # fmt: skip


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("call", TAKE_LATENTS)
def test_what_is_no_tensor_of_floats_is_refused(call, kind):
    bad, error, said = TENSORS[kind]
    with pytest.raises(error, match=said):
        TAKE_LATENTS[call](bad)


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("call", TAKE_STEPS)
def test_what_is_no_step_is_refused(call, kind):
    step, error = STEPS[kind]
    with pytest.raises(error, match="a step must be"):
        TAKE_STEPS[call](step)


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("name", ["a score", "a distance", "flicker", "adherence", "likelihood", "frechet_distance"])
def test_what_are_no_clips_of_uint8_is_refused_by_every_metric(name, kind):
    bad, error, said = FRAMES[kind]
    metric = {"a score": SCORE, "a distance": DISTANCE}.get(name) or load_metric(name)
    with pytest.raises(error, match=f"clips must be .*{said}|clips must be a numpy array {said}"):
        metric.of(bad, [RED] * 2) if isinstance(metric, Score) else metric.features(bad)


def test_every_metric_that_has_a_function_is_a_score_or_a_distance_and_so_looks_at_its_clips():
    own = [name for name, module in METRICS.items() if module in ("miniature", "motion")]
    assert all(isinstance(load_metric(name), Score | Distance) for name in own) and len(own) == 13


@pytest.mark.parametrize(
    ("call", "error", "said"), [row[1:] for row in CALLS], ids=[re.sub(r" at 0x[0-9a-f]+", "", row[0]) for row in CALLS]
)
def test_a_wrong_call_says_what_is_wrong(call, error, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert said in message and "\n" not in message and message != ""
    assert list(tmp_path.iterdir()) == []


PAIR = {"strong": Branch(guidance_scale=3.0), "weak": Branch(guidance_scale=1.0)}


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"strong": None}, TypeError, "strong must be a Branch"),
        ({"strong": {"guidance_scale": 3}}, TypeError, "strong must be a Branch"),
        ({"weak": Branch}, TypeError, "weak must be a Branch"),
        ({"base": 0}, TypeError, "base must be a Branch"),
        ({"base": ""}, TypeError, "base must be a Branch"),
        ({"span": 99}, ValueError, "span must be from 1 to"),
        ({"strength": "nofile"}, ValueError, "strength 'nofile': cannot be read"),
        ({"weak": Branch(weights="none")}, ValueError, "no second denoiser named 'none'"),
        ({"weak": Branch(lora={"none": 1.0})}, ValueError, "no LoRA adapter named none"),
        ({"weak": Branch(experts="top")}, ValueError, "no mixture of experts"),
        ({"weak": Branch(skip_layers=[99])}, ValueError, "has 4 blocks"),
        ({"weak": Branch(prompt=["a", "b", "c"])}, ValueError, "a branch has 3 prompts"),
    ],
)
def test_a_wrong_reflection_says_what_is_wrong(changes, error, said, pipe):
    pipeline, call = pipe
    with pytest.raises(error, match=said), reflection(pipeline, **PAIR | changes):
        pipeline(**call, output_type="latent")


@pytest.mark.parametrize("bad", [None, 3, "pipe", DDIMScheduler(), object])
def test_what_is_no_pipeline_is_refused(bad):
    with pytest.raises(TypeError, match="pipe must be a diffusers pipeline"), reflection(bad, **PAIR):
        pass
