"""The miniature pipelines as shipped, the classifier that judges them, and the script that trains them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    CogVideoXPipeline,
    ControlNetModel,
    PixArtAlphaPipeline,
)
from PIL import Image

from w2sd_video import Branch, reflection
from w2sd_video.metrics.frechet import frechet_distance
from w2sd_video.miniatures import CALL, WEIGHTS, judges, load_pipeline, load_weak, world
from w2sd_video.miniatures.learning.assemble import MAKERS
from w2sd_video.miniatures.training import data, models, stages, train_pixart
from w2sd_video.miniatures.training.diffusion import prompt_embeddings, prompt_tokens
from w2sd_video.miniatures.training.fit import Budget, fit
from w2sd_video.miniatures.training.train_animatediff import FRAMES, one_by_one

PIPELINES = {"animatediff": AnimateDiffPipeline, "cogvideox": CogVideoXPipeline, "pixart": PixArtAlphaPipeline}
DENOISER = {"animatediff": "unet", "cogvideox": "transformer", "pixart": "transformer"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module", params=PIPELINES)
def track(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(track):
    return load_pipeline(track)


def _render(pipe, track, prompts, steps=4):
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    call = {**CALL[track], "num_inference_steps": steps}
    return _samples(pipe(prompts, generator=generators, output_type="np", **call))


def _samples(output):
    return output.images if hasattr(output, "images") else output.frames


def _shape(track):
    frames = (CALL[track]["num_frames"],) if "num_frames" in CALL[track] else ()
    return (*frames, 32, 32, 3)


def test_the_folders_load_as_what_they_say(pipe, track):
    assert type(pipe) is PIPELINES[track]
    assert {p.dtype for p in getattr(pipe, DENOISER[track]).parameters()} == {torch.float32}


def test_all_weights_together_are_small(tmp_path):
    """As a wheel packs them, which is to stay under 60 MB, 2 of them for all else."""
    archive = shutil.make_archive(str(tmp_path / "weights"), "zip", WEIGHTS)
    assert Path(archive).stat().st_size < 58e6


def test_the_weak_denoiser_has_the_strong_ones_shapes_and_other_values(pipe, track):
    strong, weak = getattr(pipe, DENOISER[track]).state_dict(), load_weak(pipe).state_dict()
    assert {k: v.shape for k, v in strong.items()} == {k: v.shape for k, v in weak.items()}
    differing = [key for key in strong if not torch.equal(strong[key], weak[key])]
    assert differing
    assert not any("motion_modules" in key for key in differing)


def test_each_word_of_the_world_is_a_token_of_its_own(pipe):
    ids = [pipe.tokenizer(word, add_special_tokens=False).input_ids for word in world.WORDS]
    assert {len(one) for one in ids} == {1}
    assert len({one[0] for one in ids} | {pipe.tokenizer.unk_token_id}) == len(world.WORDS) + 1


def test_no_prompt_of_the_world_is_cut_off(pipe):
    assert max(len(ids) for ids in pipe.tokenizer(world.prompts()).input_ids) <= models.TEXT_LENGTH


def test_the_tokens_trained_on_are_those_the_pipeline_was_saved_with(pipe, track):
    fresh = models.clip_tokenizer() if track == "animatediff" else models.t5_tokenizer()
    prompts = world.prompts()[::20]
    assert fresh(prompts).input_ids == pipe.tokenizer(prompts).input_ids


def test_a_pipeline_gives_samples_of_the_world_and_the_same_ones_for_the_same_seed(pipe, track):
    one = _render(pipe, track, ["a red circle moving left"])
    assert one.shape == (1, *_shape(track))
    assert np.array_equal(one, _render(pipe, track, ["a red circle moving left"]))


def test_the_strong_model_follows_prompts_and_the_weak_one_less(pipe, track):
    prompts = world.prompts(sizes_and_speeds=False)[::3]
    strong = judges.adherence(_render(pipe, track, prompts, steps=6), prompts)["joint"]
    name = DENOISER[track]
    kept = getattr(pipe, name)
    setattr(pipe, name, load_weak(pipe))
    weak = judges.adherence(_render(pipe, track, prompts, steps=6), prompts)["joint"]
    setattr(pipe, name, kept)
    assert strong >= 0.6
    assert strong - weak >= 0.1


def test_the_classifier_knows_fresh_clips_and_judges_motion_by_motion():
    prompts = world.prompts()[::2]
    clips = world.clips(prompts, range(50_000, 50_000 + len(prompts)))
    right = judges.adherence(clips, prompts)
    assert min(right.values()) >= 0.99
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    backwards = [" ".join(opposite.get(word, word) for word in prompt.split()) for prompt in prompts]
    assert judges.adherence(clips[:, ::-1], backwards)["direction"] >= 0.99


def test_the_image_classifier_knows_fresh_pictures_by_their_trail():
    prompts = world.prompts()[::2]
    pictures = world.clips(prompts, range(60_000, 60_000 + len(prompts)), frames=1)[:, 0]
    right = judges.adherence(pictures, prompts)
    assert min(right.values()) >= 0.99
    turned = [prompt.replace("up", "down") for prompt in prompts]
    unturned = np.mean([one == other for one, other in zip(prompts, turned, strict=True)])
    assert judges.adherence(pictures, turned)["direction"] == pytest.approx(unturned, abs=0.01)


def test_wrong_prompts_score_nothing():
    prompts = ["a red circle moving left", "a blue square moving up"]
    clips = world.clips(prompts, [1, 2])
    assert judges.adherence(clips, prompts[::-1])["joint"] == 0
    assert judges.adherence(clips, ["a red circle moving left"] * 2)["joint"] == 0.5


def test_videos_are_judged_alike_as_bytes_and_as_floats_and_nine_frames_are_enough():
    clips = world.clips(world.prompts()[:6], range(6), frames=9)
    assert np.allclose(judges.features(clips), judges.features(clips / 255), atol=1e-4)
    with pytest.raises(ValueError, match=r"want clips of shape.*\(6, 7, 32, 32, 3\)"):
        judges.features(clips[:, :7])


def test_pictures_are_judged_alike_as_bytes_and_as_pil_images():
    pictures = world.clips(world.prompts()[:6], range(6), frames=1)[:, 0]
    assert np.array_equal(judges.features(pictures), judges.features([Image.fromarray(p) for p in pictures]))


def test_dit_moe_shows_its_classes_with_the_best_experts_and_less_with_the_worst():
    pipe = load_pipeline("dit_moe")
    names = [name for name in pipe.labels if "square" not in name]

    def joint(experts: str) -> float:
        noise = [torch.Generator().manual_seed(i) for i in range(len(names))]
        with reflection(pipe, strong=Branch(), weak=Branch(), base=Branch(experts=experts), reflection_steps=0):
            made = pipe(pipe.get_label_ids(names), generator=noise, output_type="np", **CALL["dit_moe"]).images
        return judges.adherence(made, names)["joint"]

    assert joint("top") - joint("bottom") >= 0.1


def test_the_lora_draws_comets_at_its_scale_and_nothing_at_0():
    pipe, prompts = load_pipeline("animatediff"), world.prompts(sizes_and_speeds=False)[::8]
    plain = _render(pipe, "animatediff", prompts)
    pipe.load_lora_weights(WEIGHTS / "animatediff" / "lora_comet", adapter_name="comet")
    styled = _render(pipe, "animatediff", prompts)
    pipe.set_adapters("comet", 0.0)
    assert np.allclose(_render(pipe, "animatediff", prompts), plain, atol=1e-5)
    assert judges.comets(styled).mean() >= 0.8 > 0.2 >= judges.comets(plain).mean()


def test_the_controlnet_puts_the_sprite_where_its_outlines_are():
    pipe = load_pipeline("animatediff")
    net = ControlNetModel.from_pretrained(WEIGHTS / "animatediff" / "controlnet_edges")
    controlled = AnimateDiffControlNetPipeline.from_pipe(pipe, controlnet=net)
    controlled.set_progress_bar_config(disable=True)
    wanted = world.clip("a large red circle moving left", 3)
    outlines = [Image.fromarray(frame) for frame in world.edges(wanted)]

    def pixels_off(scale: float) -> float:
        call = {**CALL["animatediff"], "conditioning_frames": outlines, "controlnet_conditioning_scale": scale}
        noise = torch.Generator().manual_seed(0)
        made = controlled("a red circle moving left", generator=noise, output_type="np", **call).frames[0]
        return float(np.linalg.norm(world.centres(made) - world.centres(wanted), axis=-1).mean())

    assert pixels_off(1.0) < 1.5 < pixels_off(0.0)


def test_comets_are_told_from_other_clips_by_their_trail():
    prompts = world.prompts()[::2]
    seeds = range(70_000, 70_000 + len(prompts))
    assert not judges.comets(world.clips(prompts, seeds)).any()
    assert judges.comets(world.clips(prompts, seeds, trail=world.COMET)).all()


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((20_000, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + np.array([1.0, 2.0, 0.0])) == pytest.approx(5, abs=1e-6)
    assert frechet_distance(a, 3 * a) == pytest.approx(3 * (3 - 1) ** 2, rel=0.05)


def test_training_reads_the_text_that_the_pipeline_gives_its_denoiser(pipe, track):
    if track == "pixart":
        table, _ = train_pixart.masked_embeddings(pipe.text_encoder)
    else:
        table = prompt_embeddings(pipe.text_encoder, prompt_tokens(pipe.tokenizer))
    some = [3, 200, 431]
    length = {} if track == "animatediff" else {"max_sequence_length": models.TEXT_LENGTH}
    kwargs = {"device": "cpu", "num_images_per_prompt": 1} if track == "animatediff" else {}
    prompts = [data.PROMPTS[i] for i in some]
    encoded = pipe.encode_prompt(prompts, do_classifier_free_guidance=True, **kwargs, **length)
    conditional, unconditional = (one for one in encoded if one.ndim == 3)  # the others are masks
    assert torch.allclose(conditional, table[some], atol=1e-5)
    assert torch.allclose(unconditional, table[[-1] * 3], atol=1e-5)


def test_stages_are_chosen_by_name_by_track_or_all():
    assert stages.select(["all"]) == list(stages.STAGES)
    animatediff = ["image_vae", "unet_base", "unet_strong", "unet_weak", "motion", "lora_comet", "controlnet_edges"]
    assert stages.select(["animatediff"]) == animatediff
    assert stages.select(["motion", "classifier"]) == ["classifier", "motion"]
    with pytest.raises(ValueError, match="unknown stage 'vae'"):
        stages.select(["vae"])


def test_frames_keep_the_label_of_their_clip():
    clips = torch.arange(3 * FRAMES).view(3, FRAMES, 1)
    frames, labels = one_by_one(clips, torch.tensor([5, 6, 7]))
    assert torch.equal(labels, 5 + frames[:, 0] // FRAMES) and len(frames) == 3 * FRAMES


def test_every_stage_trains_and_what_comes_out_loads(tmp_path, monkeypatch):
    out, weights = tmp_path / "out", tmp_path / "weights"
    for name in stages.STAGES:
        stages.run(name, out, Budget(minutes=1, max_steps=2, pool=8), weights)
    monkeypatch.setattr("w2sd_video.miniatures.WEIGHTS", weights)
    for track in PIPELINES:
        pipe = load_pipeline(track)
        load_weak(pipe)
        call = {**CALL[track], "num_inference_steps": 2}
        samples = _samples(pipe("a red circle moving left", output_type="np", **call))
        assert samples.shape[1:] == _shape(track)
    made = load_pipeline("dit_moe")([0, 47], output_type="np", **{**CALL["dit_moe"], "num_inference_steps": 2}).images
    assert made.shape == (2, 32, 32, 3)
    assert judges.load_classifier("classifier", weights).width == 16
    trained = {path.name for path in weights.iterdir()} | set(MAKERS)
    assert {path.name for path in WEIGHTS.iterdir()} <= trained, "all can be trained"


def test_an_interrupted_stage_goes_on_where_it_stopped(tmp_path):
    def train_for(steps: int) -> torch.nn.Linear:
        torch.manual_seed(0)
        line = torch.nn.Linear(1, 1)
        fit("line", line, lambda: (line(torch.ones(1, 1)) - 3).square().mean(), tmp_path, Budget(1, steps), lr=0.05)
        return line

    first = train_for(50)
    again = train_for(50)  # nothing left to do
    assert torch.equal(first.weight, again.weight)
    further = train_for(400)
    error = [abs(line(torch.ones(1, 1)).item() - 3) for line in (first, further)]
    assert error[1] < error[0]
    assert torch.load(tmp_path / "line.pt")["step"] == 400
