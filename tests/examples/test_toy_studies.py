"""The toy studies at a reduced size: what they must show, and that their figures are written whole."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from w2sd_video import sample

pytest.importorskip("matplotlib", reason="the toy studies draw figures; install the extra 'examples'")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "studies"))

import autoguidance
import cos_gaps
import cumulative
import equal_time
import fashion_two_classes
import few_steps
import gap_size
import inversion_error
import mixture_1d
import mixture_2d
import resampling
import toy
import two_classes


@pytest.fixture
def out(tmp_path):
    """Give a name for a figure, and check afterwards that it lies there whole and alone."""
    path = tmp_path / "figure.png"
    yield path
    with Image.open(path) as figure:
        figure.load()
        assert min(figure.size) > 100
    assert [item.name for item in tmp_path.iterdir()] == ["figure.png"]


def test_a_mixture_is_the_gradient_of_its_own_log_density():
    mixture = toy.Mixture([[-4.0, 1.0], [4.0, 0.0], [0.0, 2.0]], [0.2, 0.5, 0.3], spread=0.7)
    x = torch.randn(50, 2, generator=toy.seeded(0), dtype=torch.float64).mul(3).requires_grad_()
    product = toy.SCHEDULER.alphas_cumprod[300].double()
    parts = torch.distributions.Independent(
        torch.distributions.Normal(
            torch.tensor(mixture.peaks).double() * product.sqrt(), (0.49 * product + 1 - product).sqrt()
        ),
        1,
    )
    choice = torch.distributions.Categorical(torch.tensor(mixture.shares).double())
    density = torch.distributions.MixtureSameFamily(choice, parts).log_prob(x).sum()
    score = torch.autograd.grad(density, x)[0]
    torch.testing.assert_close(mixture(x.detach(), torch.tensor(300)), -(1 - product).sqrt() * score)


def test_misplaced_counts_the_samples_that_must_move():
    samples = torch.tensor([[-4.0], [-4.2], [-3.9], [4.0]])
    assert toy.two_peaks(0.5).misplaced(samples) == pytest.approx(0.25)
    assert toy.two_peaks(0.25).misplaced(samples) == pytest.approx(0.0)


def test_reflection_moves_the_share_to_the_truth_and_swapped_roles_away():
    arms = toy.four_arms(toy.two_peaks(0.7), toy.two_peaks(0.9), toy.noise(2000, 1, 0), steps=20)
    share = {name: float((drawn > 0).float().mean()) for name, drawn in arms.items()}
    assert abs(share["W2SD"] - 0.5) + 0.03 < abs(share["strong"] - 0.5)
    assert share["S2WD"] > share["strong"] + 0.03
    assert share["strong"] == pytest.approx(0.7, abs=0.04)
    assert share["weak"] == pytest.approx(0.9, abs=0.04)


def test_mixture_1d(out):
    shares = mixture_1d.main(out, seeds=1, samples=500, steps=400)
    assert shares["W2SD"][0] < shares["strong"][0] - 0.05 < shares["S2WD"][0] - 0.1


def test_mixture_2d(out):
    errors = mixture_2d.main(out, seeds=1, samples=500, steps=400)
    assert errors["W2SD"][0] < errors["strong"][0] < errors["S2WD"][0]


def test_gap_size(out, monkeypatch):
    monkeypatch.setattr(gap_size, "STEPS", 20)
    distances = gap_size.main(out, seeds=1, samples=1000)
    assert distances[0.9][0] < distances[0.8][0] < distances["strong alone"][0] < distances[0.6][0] < distances[0.5][0]


def test_equal_time_takes_equally_many_evaluations(out):
    distances = equal_time.main(out, seeds=1, samples=1000)
    assert distances[100]["AutoGuidance"][0] < distances[100]["W2SD"][0] < distances[100]["strong"][0]


def test_few_steps(out, monkeypatch):
    monkeypatch.setattr(few_steps, "STEPS", (4, 50))
    distances = few_steps.main(out, seeds=1, samples=500)
    for inversion in few_steps.INVERSIONS:
        assert distances[50][inversion][0] < 0.4 < distances[4][inversion][0]


@pytest.mark.parametrize(("size", "reflected"), [(None, 0), (0.0, 49)])
def test_the_loop_of_inversion_error_is_the_sampler(size, reflected):
    noise = toy.noise(20, 1, 0).double()
    predict = toy.roles(inversion_error.STRONG, inversion_error.STRONG, inversion_error.WEAK)
    expected = sample(predict, noise, toy.SCHEDULER, num_inference_steps=50, reflection_steps=reflected).latents
    torch.testing.assert_close(inversion_error.walk(noise, size), expected, rtol=1e-5, atol=1e-5)


def test_inversion_error(out, monkeypatch):
    monkeypatch.setattr(inversion_error, "SIZES", (0.0, 0.010, 0.3))
    distances = inversion_error.main(out, seeds=1, samples=500)
    assert distances[0.0][0] < distances[None][0] < distances[0.3][0]


@pytest.mark.parametrize(
    ("arm", "settings"),
    [
        ("strong", {"reflection_steps": 0}),
        ("W2SD", {}),
        ("Re-Sampling", {"inversion": "resample"}),
        ("advanced Re-Sampling", {"inversion": "resample-advanced"}),
    ],
)
def test_the_loop_of_resampling_is_the_sampler(arm, settings):
    noise = toy.noise(20, 2, 0).double()
    predict = toy.roles(resampling.STRONG, resampling.STRONG, resampling.WEAK)
    expected = sample(
        predict, noise, toy.SCHEDULER, num_inference_steps=50, generator=toy.seeded(1), **settings
    ).latents
    torch.testing.assert_close(resampling.walk(arm, noise, toy.seeded(1)), expected, rtol=1e-4, atol=1e-4)


def test_resampling(out):
    errors = resampling.main(out, seeds=1, samples=1000)
    assert errors["W2SD"][0] < errors["strong"][0]


def test_autoguidance(out, monkeypatch):
    monkeypatch.setattr(autoguidance, "WEIGHTS", (0.5, 1.0))
    monkeypatch.setattr(autoguidance, "EVALUATIONS", (28,))
    distances = autoguidance.main(out, seeds=1, samples=1000)[28]
    for arm in ("AutoGuidance", "current"):
        assert distances[arm][1][0] < distances[arm][0][0]


def test_cumulative(out):
    errors = {name: values[0] for name, values in cumulative.main(out, seeds=1, samples=1000).items()}
    assert errors["both gaps"] < min(errors["weight gap"], errors["guidance gap"])
    assert max(errors["weight gap"], errors["guidance gap"]) < errors["strong alone"]


def test_cos_gaps(out, monkeypatch):
    monkeypatch.setattr(cos_gaps, "EPOCHS", (5, 10, 20))
    cosines = cos_gaps.main(out, seeds=1)
    assert min(values[0] for values in cosines["unbalanced, exact"][2:]) > 0.9
    swapped = cos_gaps.cosine(cos_gaps.DATA["weak"], cos_gaps.DATA["strong"], 500, toy.seeded(0))
    assert swapped < 0


def test_two_classes(out):
    circles = two_classes.main(out, seeds=1, samples=100, steps=200)
    assert circles["W2SD"][0] < circles["strong"][0] - 0.03 < circles["S2WD"][0]


def test_trousers_and_sneakers_are_counted(out):
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra judges")
    trousers = fashion_two_classes.main(out, samples=25)
    assert trousers["W2SD"] < trousers["strong"] < trousers["weak"] and trousers["W2SD"] < trousers["S2WD"]


def test_the_classifier_of_two_classes_knows_pictures_that_it_never_saw():
    fresh, is_circle = two_classes.labelled(100, 100, seed=5)
    predicted = two_classes.train_classifier(seed=0)(fresh)[:, 0] > 0
    assert float((predicted == is_circle).float().mean()) > 0.98


def test_a_figure_replaces_another_only_when_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"earlier")

    def broken(*args, **kwargs):
        raise OSError("disk full")

    figure = toy.plt.figure()
    monkeypatch.setattr(figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        toy.write_figure(figure, path)
    assert path.read_bytes() == b"earlier"


def test_a_figure_of_another_kind_is_refused_before_any_work(tmp_path):
    with pytest.raises(SystemExit, match=r"must end in \.png"):
        mixture_1d.main(tmp_path / "figure.jpg")


def test_agreement_needs_every_seed(capsys):
    toy.verdict("Water is wet", [True, True])
    toy.verdict("Water is dry", [True, False])
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Water is wet: held in 2 of 2 seeds. Our result agrees with the paper."
    assert second == "Water is dry: held in 1 of 2 seeds. Our result does not agree with the paper."
