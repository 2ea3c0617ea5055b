"""Numbers of sets of features, against the same written plainly and against what is known of Gaussians."""

import sys
from functools import partial
from itertools import product

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from w2sd_video.metrics import BIASED, METRICS, Distance, MetricUnavailableError, load_metric
from w2sd_video.metrics.frechet import frechet_distance, frechet_principal, principal_features
from w2sd_video.metrics.kernel import kernel_distance, kernel_distance_of_units
from w2sd_video.metrics.manifold import precision, precision_of_units, recall, recall_of_units
from w2sd_video.miniatures import world

FUNCTIONS = (frechet_distance, partial(frechet_principal, number=2), kernel_distance, precision, recall)


def gaussians(n=40, m=60, width=5, shift=0.5):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(width, width))
    return rng.normal(size=(n, width)) @ mix + shift, rng.normal(size=(m, width))


def test_the_frechet_distance_of_gaussians_is_that_of_their_formula():
    rng = np.random.default_rng(1)
    a, b = np.diag([1.0, 4.0, 0.25]), np.array([[2.0, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    mean = np.array([1.0, 0, -2])
    expected = mean @ mean + np.trace(a + b - 2 * sqrtm(sqrtm(a) @ b @ sqrtm(a)).real)
    samples = rng.multivariate_normal(np.zeros(3), a, 40000), rng.multivariate_normal(mean, b, 40000)
    assert frechet_distance(*samples) == pytest.approx(expected, rel=0.02)
    assert frechet_principal(*samples, number=3) == pytest.approx(frechet_distance(*samples), rel=1e-9)


@pytest.mark.parametrize("number", [1, 3])
def test_the_principal_distance_is_on_the_eigenvectors_of_the_real_covariance(number):
    features, real = gaussians()
    real = real * [3, 2, 1, 0.5, 0.2]
    vectors = np.linalg.eigh(np.cov(real, rowvar=False))[1][:, ::-1][:, :number]
    expected = frechet_distance(features @ vectors, real @ vectors)
    assert frechet_principal(features, real, number) == pytest.approx(expected, rel=1e-9)
    assert expected < frechet_distance(features, real)


@pytest.mark.parametrize("number", [2, 8])
def test_the_floor_of_a_gaussian_is_what_the_docstring_says(number):
    rng, n, m = np.random.default_rng(0), 256, 512
    floors = [frechet_distance(rng.normal(size=(n, number)), rng.normal(size=(m, number))) for _ in range(200)]
    assert np.mean(floors) == pytest.approx((1 / n + 1 / m) * (number + (number**2 + number) / 4), rel=0.1)


def test_so_many_samples_bear_so_many_features():
    assert [principal_features(n) for n in (1, 64, 513, 1026, 10**5)] == [1, 2, 16, 32, 64]


def kernel(x, y):
    return (x @ y / len(x) + 1) ** 3


def plain_kernel_distance(a, unit, b, other):
    def mean(xs, of_xs, ys, of_ys):
        pairs = product(zip(xs, of_xs, strict=True), zip(ys, of_ys, strict=True))
        return np.mean([kernel(x, y) for (x, i), (y, j) in pairs if i != j])

    return mean(a, unit, a, unit) + mean(b, other, b, other) - 2 * mean(a, unit, b, other)


def test_the_kernel_distance_is_the_unbiased_formula():
    features, real = gaussians(12, 15)
    expected = plain_kernel_distance(features, range(12), real, range(12, 27))
    assert kernel_distance(features, real) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_of_prompts_compares_no_clips_of_one_prompt():
    features, real = gaussians(12, 15)
    unit, other = np.repeat(np.arange(4), 3), np.tile(np.arange(5), 3)
    of_kept = kernel_distance_of_units(features, unit, real, other)
    assert of_kept(np.ones(5, bool)) == pytest.approx(plain_kernel_distance(features, unit, real, other), rel=1e-9)
    some, more = unit != 2, other != 2
    without = plain_kernel_distance(features[some], unit[some], real[more], other[more])
    assert of_kept(np.arange(5) != 2) == pytest.approx(without, rel=1e-9)
    assert np.isnan(of_kept(np.arange(5) == 0)), "one prompt compares with nothing"


def test_the_kernel_distance_of_one_distribution_is_0_on_the_average_also_by_prompts():
    rng, of_prompts, plain = np.random.default_rng(0), [], []
    unit, other = np.repeat(np.arange(12), 2), np.repeat(np.arange(12), 4)
    for _ in range(400):
        centre = rng.normal(size=(12, 1, 3))
        a, b = (centre + 0.5 * rng.normal(size=(12, count, 3)) for count in (2, 4))
        of_prompts.append(kernel_distance_of_units(a.reshape(-1, 3), unit, b.reshape(-1, 3), other)(np.ones(12, bool)))
        plain.append(kernel_distance(a.reshape(-1, 3), b.reshape(-1, 3)))
    error = np.std(of_prompts) / 20
    assert abs(np.mean(of_prompts)) < 3 * error
    assert np.mean(plain) < -3 * error, "clips of one prompt are alike, and plain pairs count them differently"


def plain_precision(features, real, k=3):
    def reach(i):
        return np.sort([np.linalg.norm(real[i] - other) for j, other in enumerate(real) if j != i])[k - 1]

    reaches = [reach(i) for i in range(len(real))]
    is_within = [any(np.linalg.norm(x - y) <= r for y, r in zip(real, reaches, strict=True)) for x in features]
    return np.mean(is_within)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_precision_and_recall_are_shares_within_balls_of_the_third_neighbour(shift):
    features, real = gaussians(30, 25, 3, shift)
    assert precision(features, real) == plain_precision(features, real)
    assert recall(features, real) == plain_precision(real, features)
    unit, other = np.arange(30) % 5, np.arange(25) % 5
    kept = np.arange(5) != 1
    some, more = features[unit != 1], real[other != 1]
    assert precision_of_units(features, unit, real, other)(kept) == plain_precision(some, more)
    assert recall_of_units(features, unit, real, other)(kept) == plain_precision(more, some)


def test_a_few_good_clips_have_precision_and_no_recall_and_a_spread_has_recall_and_less_precision():
    real = np.random.default_rng(0).normal(size=(300, 2))
    few, wide = real[:6] * 0.1, np.random.default_rng(1).normal(size=(300, 2)) * 5
    assert precision(few, real) == 1 and recall(few, real) < 0.2
    assert recall(wide, real) > 0.9 and precision(wide, real) < 0.5
    assert precision(real, real) == recall(real, real) == 1
    assert np.isnan(precision(few, real[:3]))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_are_no_features_is_refused(function):
    good = np.zeros((5, 3))
    for bad in (np.zeros((5, 4)), np.zeros(5), np.zeros((1, 3)), np.full((5, 3), np.nan)):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(ValueError, match="features must be"):
                function(*pair)


def test_metrics_of_the_world_tell_real_clips_from_one_sided_ones():
    prompts = world.prompts(sizes_and_speeds=False)
    real, others = (world.clips(prompts * 4, range(at, at + 192)) for at in (0, 200))
    one_sided = world.clips([prompt for prompt in prompts if "red" in prompt] * 12, range(400, 544))
    metrics = {name: load_metric(name) for name in ("kid", "frechet_principal", "precision", "recall")}
    features = metrics["kid"].features
    good, bad = (
        {name: metric.between(features(clips), features(real)) for name, metric in metrics.items()}
        for clips in (others, one_sided)
    )
    assert {metric.space for metric in metrics.values()} == {"classifier"}
    assert bad["kid"] > 20 * abs(good["kid"]) and bad["frechet_principal"] > 20 * good["frechet_principal"]
    assert good["precision"] > 0.9 and good["recall"] > 0.9 and bad["precision"] > 0.9 and bad["recall"] < 0.5


def test_what_is_biased_is_known_before_it_is_loaded():
    loaded = [load_metric(name) for name in METRICS if METRICS[name] in ("miniature", "efficientnet")]
    for metric in loaded:
        if isinstance(metric, Distance):
            assert (metric.name in BIASED) == metric.is_biased


def test_efficientnet_knows_a_photograph_and_its_last_layer_takes_the_features():
    from w2sd_video.metrics.efficientnet import features_of_frames, load_network

    photograph = np.asarray(Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB"))
    network = load_network()
    with torch.no_grad():
        chances = network._fc(features_of_frames(network, photograph[None])).softmax(1)[0]
    assert int(chances.argmax()) == 652, "a military uniform, of ImageNet's classes"
    assert chances[652] > 0.3


def test_features_of_a_clip_are_the_mean_of_its_frames_of_any_size():
    metric, rng = load_metric("kid_efficientnet"), np.random.default_rng(0)
    clips = rng.integers(0, 256, (1, 2, 40, 64, 3), dtype=np.uint8)
    both, first, second = (metric.features(each) for each in (clips, clips[:, :1], clips[:, 1:]))
    assert both.shape == (1, 1280) and both == pytest.approx((first + second) / 2, abs=1e-5)
    assert load_metric("frechet_efficientnet").space == metric.space == "efficientnet"


def test_of_a_wide_frame_the_middle_square_is_seen():
    from w2sd_video.metrics.efficientnet import as_seen

    frames = np.zeros((1, 40, 64, 3), np.uint8)
    frames[:, :, :12] = frames[:, :, 52:] = 255
    frames[:, 20:, 12:52] = 127
    seen = as_seen(frames)
    assert seen.shape == (1, 3, 224, 224)
    assert seen[0, :, 10, 10:-10].numpy() == pytest.approx(-127 / 128) and seen[0, 0, -10, 112] == 0


def test_weights_of_efficientnet_are_read_without_running_code(monkeypatch):
    from w2sd_video.metrics import efficientnet

    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: asked.append(options) or load(*args, **options))
    efficientnet.load_network.__wrapped__("cpu")
    assert [options["weights_only"] for options in asked] == [True]


def test_without_its_packages_one_line_says_which_extra(monkeypatch):
    from w2sd_video.metrics import efficientnet

    efficientnet.load_network.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MetricUnavailableError, match=r'kid_efficientnet needs .*pip install "w2sd-video\[judges\]"'):
        load_metric("kid_efficientnet")
