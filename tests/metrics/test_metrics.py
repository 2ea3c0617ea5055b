"""Metrics of real models: tiny random networks in their published layouts, against the same written plainly."""

import math
from string import ascii_lowercase

import numpy as np
import pytest
import torch
from metrics_by_hand import ImageReward, Inception, OpenClip, Predictor, normalised, randomise
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

from w2sd_video.metrics import METRICS, MetricUnavailableError, load_metric
from w2sd_video.metrics.frames import MAX_FRAMES, pixels
from w2sd_video.metrics.frechet import frechet_distance

NETWORKS = ("clip_score", "pick_score", "aesthetics", "hpsv2", "image_reward", "fid", "inception_score")
PROMPTS = ["a dog", "two red cats in the snow under a tree"]  # the second is longer than the texts of the networks
LETTERS = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
VOCABULARY = {piece: number for number, piece in enumerate([*LETTERS, "<|startoftext|>", "<|endoftext|>"])}


def _clips(frames=3, height=28, width=28, number=2):
    return np.random.default_rng(3).integers(0, 256, (number, frames, height, width, 3), dtype=np.uint8)


def _tokens(prompt, length):
    """A letter a token, cut to the length, between the first and the last token."""
    letters = [VOCABULARY[piece] for word in prompt.split() for piece in [*word[:-1], f"{word[-1]}</w>"]]
    return torch.tensor([[VOCABULARY["<|startoftext|>"], *letters[: length - 2], VOCABULARY["<|endoftext|>"]]])


def _cosines(images, text):
    return torch.cosine_similarity(images, text).double()


def _clip():
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53}
    sizes = {"image_size": 28, "patch_size": 14}
    config = CLIPConfig(text_config={**common, **words}, vision_config={**common, **sizes}, projection_dim=24)
    return randomise(CLIPModel(config))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    _clip().save_pretrained(folder)
    CLIPTokenizer(vocab=VOCABULARY, merges=[]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["clip_score", "pick_score"])
def test_pick_score_is_the_logits_of_clip_and_clip_score_the_cosine_times_100(clip_folder, name):
    metric, clips, model = load_metric(name, source=str(clip_folder)), _clips(), CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        outputs = [
            model(input_ids=_tokens(prompt, 16), pixel_values=normalised(clip))
            for clip, prompt in zip(clips, PROMPTS, strict=True)
        ]
        logits = [output.logits_per_image.mean() for output in outputs]
        cosines = [100 * _cosines(output.image_embeds, output.text_embeds).mean() for output in outputs]
    assert abs(cosines[0] - logits[0]) > 1e-2, "this model was trained to another factor"
    expected = logits if name == "pick_score" else cosines
    assert metric.name == name and metric.higher_is_better
    assert np.ptp(expected) > 1e-3
    assert metric.of(clips, PROMPTS) == pytest.approx(np.array(expected), rel=1e-5)


def test_aesthetics_is_linear_layers_on_the_normalised_embedding(clip_folder, tmp_path):
    predictor, model, clips = randomise(Predictor(24)), CLIPModel.from_pretrained(clip_folder), _clips()
    for file in clip_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    torch.save(predictor.state_dict(), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    with torch.no_grad():
        tokens = _tokens("a", 16)
        seen = [model(input_ids=tokens, pixel_values=normalised(clip)).image_embeds for clip in clips]
        expected = [predictor(embeddings / embeddings.norm(dim=-1, keepdim=True)).mean() for embeddings in seen]
    scores = load_metric("aesthetics", source=str(tmp_path)).of(clips, PROMPTS)
    assert scores == pytest.approx(np.array(expected), rel=1e-4)


def test_a_predictor_for_another_clip_is_refused(clip_folder, tmp_path):
    for file in clip_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    torch.save(randomise(Predictor(25)).state_dict(), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    with pytest.raises(MetricUnavailableError, match="wants embeddings of 25 numbers, and this CLIP gives 24"):
        load_metric("aesthetics", source=str(tmp_path))


@pytest.fixture(scope="module")
def hps_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hps")
    torch.save({"epoch": 1, "state_dict": OpenClip(54).half().state_dict()}, folder / "HPS_v2.1_compressed.pt")
    CLIPTokenizer(vocab=VOCABULARY, merges=[]).save_pretrained(folder)
    return folder


def test_hpsv2_is_a_hundred_cosines_of_open_clip(hps_folder):
    model, clips = OpenClip(54).half().float(), _clips()
    expected = [
        100 * _cosines(model.encode_image(normalised(clip)), model.encode_text(_tokens(prompt, 16))).mean()
        for clip, prompt in zip(clips, PROMPTS, strict=True)
    ]
    assert np.ptp(expected) > 1
    assert load_metric("hpsv2", source=str(hps_folder)).of(clips, PROMPTS) == pytest.approx(
        np.array(expected), abs=1e-3
    )


def test_hpsv2_sees_all_of_a_wide_frame_between_black_bars(hps_folder):
    metric, wide = load_metric("hpsv2", source=str(hps_folder)), _clips(height=12)
    barred = np.pad(wide, [(0, 0), (0, 0), (8, 8), (0, 0), (0, 0)])
    assert metric.of(wide, PROMPTS) == pytest.approx(metric.of(barred, PROMPTS), abs=1e-4)


def test_image_reward_is_the_standardised_head_of_blip(tmp_path):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "dog",
        "red",
        "cats",
        "in",
        "the",
        "snow",
        "under",
        "tree",
    ]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(tmp_path)
    model = ImageReward(len(words))
    torch.save(model.state_dict(), tmp_path / "ImageReward.pt")
    clips, prompts = _clips(height=32, width=32), ["a dog", " ".join(["red cats in the snow"] * 10)]
    read = [[2, 5, 6, 3], [2, *([7, 8, 9, 10, 11] * 10)[:33], 3]]  # 35 tokens at most
    rewards = [model(normalised(clip), torch.tensor([tokens])) for clip, tokens in zip(clips, read, strict=True)]
    expected = [(float(reward.mean()) - 0.16717362830052426) / 1.0333394966054072 for reward in rewards]
    assert np.ptp(expected) > 1e-3
    assert load_metric("image_reward", source=str(tmp_path)).of(clips, prompts) == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def inception_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inception")
    torch.jit.script(Inception()).save(folder / "inception-2015-12-05.pt")
    return folder


def test_fid_is_of_the_frames_of_all_clips(inception_folder):
    metric, inside = load_metric("fid", source=str(inception_folder)), Inception().features.weight
    few, real = _clips(frames=2, number=3), _clips(frames=3, number=4) // 2
    seen, of_real = metric.features(few), metric.features(real)
    assert seen.shape == (3, 2 * 2048) and of_real.shape == (4, 3 * 2048) and len(inside) == 2048
    frames = [torch.from_numpy(clips.reshape(-1, *clips.shape[2:])).permute(0, 3, 1, 2) for clips in (few, real)]
    expected = frechet_distance(*(Inception()(f, return_features=True).double().numpy() for f in frames))
    assert not metric.higher_is_better and metric.needs_real
    assert metric.between(seen, of_real) == pytest.approx(expected, rel=1e-5)
    assert metric.between(seen, seen) == pytest.approx(0, abs=1e-3)


def test_inception_score_is_how_far_the_classes_of_frames_are_from_their_mean(inception_folder):
    metric, clips = load_metric("inception_score", source=str(inception_folder)), _clips(number=3)
    chances = [Inception()(torch.from_numpy(c).permute(0, 3, 1, 2), no_output_bias=True).double() for c in clips]
    mean = torch.cat(chances).mean(0)
    divergences = [float((p * (p / mean).log()).sum()) for p in torch.cat(chances)]
    seen = metric.features(clips)
    assert metric.higher_is_better and not metric.needs_real
    assert seen.reshape(-1, 1008) == pytest.approx(torch.cat(chances).numpy(), rel=1e-3)
    assert metric.between(seen, None) == pytest.approx(math.exp(np.mean(divergences)), rel=1e-5)


def test_inception_score_counts_equally_frequent_classes(inception_folder):
    between = load_metric("inception_score", source=str(inception_folder)).between
    sure = np.eye(1008)
    assert between(sure[[0, 3, 7, 9]].reshape(2, -1), None) == pytest.approx(4)
    assert between(sure[[5, 5, 5, 5]].reshape(2, -1), None) == pytest.approx(1)


def test_a_long_clip_is_judged_by_frames_over_all_of_it(clip_folder):
    metric, clip = load_metric("clip_score", source=str(clip_folder)), _clips(frames=22, number=1)
    seen = clip[:, [0, 3, 6, 9, 12, 15, 18, 21]]
    assert len(seen[0]) == MAX_FRAMES
    assert metric.of(clip, PROMPTS[:1]) == pytest.approx(metric.of(seen, PROMPTS[:1]))


def test_frames_are_cropped_to_their_middle():
    frames = _clips(height=28, width=40, number=1)[0]
    assert torch.allclose(pixels(frames, 28), normalised(frames[:, :, 6:34]), atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_hub_or_a_folder_one_line_says_what_to_do(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MetricUnavailableError, match=rf"^{name} cannot be loaded from .*; give a folder") as told:
        load_metric(name)
    assert "\n" not in str(told.value)


def _an_empty_folder(folder):
    pass


def _text_files(folder):
    for file in _FILES:
        (folder / file).write_text("no network")


def _another_network(folder):
    for file in _FILES:
        torch.save({"weight": torch.zeros(3)}, folder / file)
    torch.save([1, 2], folder / "HPS_v2.1_compressed.pt")


def _almost_the_right_one(folder):
    weights = OpenClip(54).state_dict()
    torch.save({**weights, "visual.ln_pre.weight": torch.zeros(3)}, folder / "HPS_v2.1_compressed.pt")
    reward = ImageReward(14).state_dict()
    torch.save({**reward, "blip.visual_encoder.norm.weight": torch.zeros(3)}, folder / "ImageReward.pt")
    torch.save(randomise(Predictor(25)).state_dict(), folder / "sac+logos+ava1-l14-linearMSE.pth")
    torch.jit.script(Inception(20, 10)).save(folder / "inception-2015-12-05.pt")
    clip = _clip()
    rest = {name: value for name, value in clip.state_dict().items() if name != "visual_projection.weight"}
    clip.save_pretrained(folder, state_dict=rest)


_FILES = (
    "config.json",
    "HPS_v2.1_compressed.pt",
    "ImageReward.pt",
    "sac+logos+ava1-l14-linearMSE.pth",
    "inception-2015-12-05.pt",
)


@pytest.mark.parametrize("content", [_an_empty_folder, _text_files, _another_network, _almost_the_right_one])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_of_something_else_is_told_in_one_line(name, content, tmp_path):
    content(tmp_path)
    with pytest.raises(MetricUnavailableError, match=rf"^{name} cannot be loaded from .*; give a folder") as told:
        load_metric(name, source=str(tmp_path))
    assert "\n" not in str(told.value)


def test_weights_that_are_missing_are_not_made_up(hps_folder, tmp_path):
    weights = torch.load(hps_folder / "HPS_v2.1_compressed.pt")["state_dict"]
    del weights["transformer.resblocks.1.mlp.c_fc.weight"]
    torch.save(weights, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(
        MetricUnavailableError, match=r"1 of its weights are missing, among them text_model.*1\.mlp\.fc1\.weight"
    ):
        load_metric("hpsv2", source=str(tmp_path))


def test_an_unknown_name_option_or_device_is_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="did you mean 'hpsv2'"):
        load_metric("hpsv3")
    with pytest.raises(ValueError, match="'flicker' has no option 'source'; it has none"):
        load_metric("flicker", source="folder")
    with pytest.raises(ValueError, match="'fid' has no option 'size'; it has source, device"):
        load_metric("fid", size=3)
    with pytest.raises(ValueError, match="device 'gpu': not available on this machine; use auto or cpu"):
        load_metric("fid", device="gpu")


def test_every_metric_has_a_loading_function():
    from importlib import import_module

    for name, module in METRICS.items():
        assert callable(getattr(import_module(f"w2sd_video.metrics.{module}"), name))
