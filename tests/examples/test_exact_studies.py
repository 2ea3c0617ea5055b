"""The studies of exact pairs at a reduced size, and what they compute against other ways of computing it."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib", reason="the studies draw figures; install the extra 'examples'")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "studies"))

import balanced_strength
import exact_pairs
import fast_miniatures
import fast_preset
import operators_exact
import readings
import readings_of_miniatures
import solvers_exact
import toy
import zero_gap
from exact_pairs import PAIRS, TRUTH


def check_figure(path):
    with Image.open(path) as figure:
        figure.load()
        assert min(figure.size) > 100


def test_a_model_is_the_mean_of_the_data_by_its_density():
    alpha, sigma, model = 0.6, 0.5, PAIRS["mixed"].weak
    x = torch.randn(50, 2, generator=toy.seeded(0), dtype=torch.float64).requires_grad_()
    width = torch.tensor((alpha**2 * model.spread**2 + sigma**2) ** 0.5, dtype=torch.float64)
    parts = torch.distributions.Independent(torch.distributions.Normal(alpha * model.peaks.double(), width), 1)
    choice = torch.distributions.Categorical(torch.tensor(model.shares).double())
    density = torch.distributions.MixtureSameFamily(choice, parts).log_prob(x).sum()
    expected = (x + sigma**2 * torch.autograd.grad(density, x)[0]) / alpha  # Tweedie
    found = exact_pairs.denoised((model,), x.detach()[None], alpha, sigma)[0]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_the_truth_is_nearest_to_itself_and_strong_nearer_than_weak():
    for pair in PAIRS.values():
        drawn = [model.draw(4000, toy.seeded(0)) for model in (TRUTH, pair.strong, pair.weak)]
        truth, strong, weak = exact_pairs.distances(torch.stack(drawn))
        assert truth < strong < weak


def test_pairs_that_are_sampled_together_are_sampled_as_alone():
    noise, settings = toy.noise(64, 2, 0), {"inversion": "current", "solver": "2M", "grid": 1.3}
    together, evaluations = exact_pairs.sampled(exact_pairs.roles_of(list(PAIRS)), noise, 6, **settings)
    alone, _ = exact_pairs.sampled(exact_pairs.roles_of(["shifted"]), noise, 6, **settings)
    torch.testing.assert_close(together[list(PAIRS).index("shifted")], alone[0], rtol=1e-4, atol=1e-4)
    assert evaluations == 6 + 2 * 5


@pytest.mark.parametrize(
    ("setting", "cost"),
    [
        ({"reflection_steps": 0}, 10),
        ({"reflection_steps": 0, "autoguidance": 1.0}, 20),
        ({"reflection_steps": 0, "autoguidance": 1.0, "autoguidance_steps": (0.5, 1.0)}, 15),
        ({"reflection_steps": 0, "autoguidance": 1.0, "reuse": 2}, 16),
        ({"inversion": "paper"}, 28),
        ({"inversion": "current", "guided": (1.0, 2.0, 0.0)}, 28),  # weak's is a half of strong's
        ({"inversion": "paper", "guided": (2.0, 2.0, 0.0)}, 47),
        ({"inversion": "resample", "reflection_steps": (0.0, 0.5)}, 15),
    ],
)
def test_evaluations_are_those_of_models_at_different_latents(setting, cost):
    assert operators_exact.drawn_by(["mixed"], torch.zeros(1, 2), 10, setting)[1] == cost
    assert operators_exact.steps_within(cost, setting) == 10
    assert operators_exact.steps_within(cost - 1, setting) == 9


def test_zero_gap(tmp_path, monkeypatch):
    monkeypatch.setattr(zero_gap, "STEPS", (10, 20))
    shares = zero_gap.main(tmp_path / "figure.png", seeds=1, samples=200)
    check_figure(tmp_path / "figure.png")
    for kind in zero_gap.KINDS:
        assert max(shares[kind, "current", 10]) < 1e-6 < 0.1 < min(shares[kind, "paper", 20])
        assert sum(shares[kind, "paper", 20]) < sum(shares[kind, "paper", 10])
    assert shares["epsilon", "paper", 20] == pytest.approx(shares["v_prediction", "paper", 20], rel=1e-4)


def test_readings(tmp_path, monkeypatch):
    monkeypatch.setattr(readings, "STEPS", (4, 10))
    monkeypatch.setattr(readings, "STRENGTHS", (1.0, 2.0))
    found = readings.main(tmp_path / "figure.png", seeds=2, samples=200)
    check_figure(tmp_path / "figure.png")
    at_one = found[False, "flow", 10]
    assert max(at_one["current", "epsilon"]) < min(at_one["paper", "epsilon"]) < 1
    assert min(found[False, "flow", 4]["current", "sample"]) > 2  # at strength 1 far too long a move


def test_operators(tmp_path, capsys):
    arms = ["strong alone", "+ window, grid, solver, gap held", "W2SD explicit", "Z-Sampling", "Re-Sampling"]
    sizes = {"searches": 2, "settings": 3, "samples": 256, "budgets": [10, 12]}
    found = operators_exact.main(tmp_path / "figure.png", arms=arms, kind="flow", **sizes)
    check_figure(tmp_path / "figure.png")
    assert list(found) == arms and all(len(of_searches) == 2 for arm in arms for of_searches in found[arm].values())
    assert "| Z-Sampling | " in capsys.readouterr().out


def test_balanced_strength(monkeypatch, capsys):
    monkeypatch.setattr(balanced_strength, "STRENGTHS", (0.5, 1.0, 2.0))
    monkeypatch.setattr(balanced_strength, "WINDOWS", {"late half": (0.5, 1.0)})
    found = balanced_strength.main(seeds=1, samples=500)["late half"]
    means = {pick: torch.tensor(found[pick]).log().mean() for pick in balanced_strength.PICKS}
    assert means["tuned"] < means["strong alone"] and means["balanced"] < means["strong alone"]


def test_solvers(monkeypatch):
    monkeypatch.setattr(solvers_exact, "BUDGETS", (12,))
    monkeypatch.setattr(solvers_exact, "GRIDS", (1.3,))
    found = {key: by_budget[0][0] for key, by_budget in solvers_exact.main(seeds=1, samples=512).items()}
    assert found["epsilon", "AutoGuidance", "UniPC", 1.3] < found["epsilon", "AutoGuidance", "Euler", 1.3]
    assert len(found) == 2 * 5 + 2 * 4


def test_fast_preset(monkeypatch):
    monkeypatch.setattr(fast_preset, "STEPS", (10,))
    shares = fast_preset.main(seeds=1, samples=512)["epsilon", 10]
    assert shares["AutoGuidance, late half"][0] > 0.8 > 0.3 > shares["AutoGuidance, early half"][0]
    assert max(shares[name][0] for name in fast_preset.FULL) == 1.0


def test_fast_on_a_miniature(tmp_path, capsys):
    found = fast_miniatures.main("dit-moe", tmp_path, steps=2, prompts=4, seeds=1)
    costs = [int(arm["nfe"]) for arm in found.values()]
    assert costs == [4, 6, 8, 8, 8] and "| AutoGuidance, late half | 6 |" in capsys.readouterr().out


def test_readings_of_a_miniature(capsys):
    found = readings_of_miniatures.main(("dit-moe",), ("current",), (1.0,), steps=3, prompts=4, seeds=1)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| dit-moe")]
    worth = {cells[4].strip(): float(cells[6].split()[0]) for cells in rows}
    less = {cells[4].strip(): float(cells[8].split()[0]) for cells in rows[1:]}
    assert len({cells[5] for cells in rows}) == 1, "all cost as many evaluations"
    assert len(set(worth.values())) == 3, "for a velocity that is not exact the readings are three"
    for reading, of_reading in less.items():
        assert of_reading == pytest.approx(worth[reading] - worth["epsilon"], abs=0.1)
        assert found["dit-moe", "current", 1.0, reading].value == pytest.approx(of_reading, abs=0.1)
