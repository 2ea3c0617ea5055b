"""The layout of guidance, from what probe turns show: rules written plainly, whose weights are known."""

import functools
import itertools

import pytest
import tiny
import torch
from helpers import run
from pipelines_table import run as result_of
from tiny.variants import build

from w2sd_video import Branch, reflection
from w2sd_video.driver.layout import Pair, answered, rows_needed
from w2sd_video.driver.measuring import CONSTANT_TURNS, PROBE_TURNS, Probed, measured, probe_rows

SHAPE = torch.Size((4, 6, 5))


def plain(w):
    return lambda cond, uncond, latents: uncond + w * (cond - uncond)


def of_the_same_norm(w, dim):
    def rule(cond, uncond, latents):
        guided = uncond + w * (cond - uncond)
        norm = functools.partial(torch.linalg.vector_norm, dim=dim, keepdim=True)
        return guided * norm(cond) / norm(guided)

    return rule


def projected(w):
    """Adaptive projected guidance: what of the difference is along the conditional prediction is left out."""

    def rule(cond, uncond, latents):
        difference = cond - uncond
        along = (difference * cond).sum() / cond.square().sum() * cond
        return cond + (w - 1) * (difference - along)

    return rule


def of_three_channels(w):
    return lambda cond, uncond, latents: torch.cat([(uncond + w * (cond - uncond))[:3], cond[3:]])


def by_frame(cond, uncond, latents):
    w = torch.linspace(1.0, 3.0, 6)[None, :, None]
    return uncond + w * (cond - uncond)


def turned_into_velocity(cond, uncond, latents):
    return 0.4 * latents - 0.9 * plain(5.0)(cond, uncond, latents)


def probe(make, calls=((0, 1),), samples=1, dtype=torch.float32, own_scale=None, changed=None, stated=None):
    """Return the turns of a step whose rows are made into a prediction by a rule; `calls` name the rows' parts."""
    turns = []
    for turn in range(PROBE_TURNS):
        rows, before = [], 0
        for parts in calls:
            count = len(parts) * samples
            rows.append(probe_rows(turn, [SHAPE] * count, before, torch.zeros(1, dtype=dtype)))
            before += count
        flat = [row for call in rows for row in call]
        latents = torch.randn(samples, *SHAPE, generator=torch.Generator().manual_seed(turn)).to(dtype)
        rule = changed if turn == 2 and changed is not None else make
        order = [part for parts in calls for part in parts]
        of_sample = [[flat[order.index(part) * samples + s] for part in sorted(order)] for s in range(samples)]
        prediction = torch.stack([rule(*parts, latents[s]) for s, parts in enumerate(of_sample)])
        turns.append(Probed(rows, prediction.to(dtype), latents))
    return measured(turns, own_scale, stated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("calls", [((1, 0),), ((0, 1),), ((0,), (1,)), ((1,), (0,))])
def test_the_rows_of_a_weighted_sum_are_found_whatever_their_order(calls, samples, dtype):
    layout = probe(plain(4.5), calls, samples, dtype)
    order = [part for parts in calls for part in parts]
    assert layout.kind == "affine" and not layout.others
    assert layout.scale == pytest.approx(4.5, rel=0.02 if dtype == torch.bfloat16 else 2e-3)
    cond, uncond = (samples * order.index(part) for part in (0, 1))
    assert layout.pairs == tuple(Pair(cond + s, uncond + s) for s in range(samples))


@pytest.mark.parametrize("calls", [((0,),), ((1, 0),), ((0,), (1,)), ((1, 0, 2),)])
@pytest.mark.parametrize("samples", [130, 400])
def test_the_rows_of_a_large_batch_are_found_though_they_are_more_than_the_elements(calls, samples):
    parts = [part for parts in calls for part in parts]
    rules = {1: lambda cond, latents: -0.5 * cond + latents, 2: plain(1.2), 3: perturbed(4.0)}
    layout = probe(rules[len(parts)], calls, samples, own_scale=4.0, changed=perturbed(5.0) if 2 in parts else None)
    assert layout.kind == "affine" and samples > SHAPE.numel()
    places = [samples * parts.index(part) for part in sorted(parts)]
    assert layout.pairs == tuple(Pair(places[0] + s, places[1] + s) for s in range(samples if places[1:] else 0))
    assert layout.scale == pytest.approx({1: 1.0, 2: 1.2, 3: 4.0}[len(parts)], rel=1e-4)
    of_others = [rows for rows in layout.further if rows]
    assert of_others == [(places[2] + s,) for s in range(samples if places[2:] else 0)]


def test_of_a_large_batch_too_what_is_no_weighted_sum_is_told_apart():
    assert probe(of_the_same_norm(3.0, 2), samples=20).kind == "rescaled"
    assert probe(projected(3.0), samples=20).kind == probe(projected(3.0), samples=100).kind == "not affine"


def test_a_prediction_that_is_turned_into_another_parametrisation_is_still_a_weighted_sum():
    layout = probe(turned_into_velocity)
    assert layout.kind == "affine" and layout.scale == pytest.approx(5.0, abs=1e-3)


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        (of_the_same_norm(3.0, (0, 1, 2)), "rescaled"),
        (of_the_same_norm(3.0, 0), "rescaled"),
        (of_the_same_norm(3.0, 2), "rescaled"),
        (of_three_channels(3.0), "by slice"),
        (by_frame, "by slice"),
        (projected(3.0), "not affine"),
    ],
)
def test_what_is_no_weighted_sum_as_a_whole_is_told_apart(rule, kind):
    layout = probe(rule, samples=2)
    assert layout.kind == kind
    if kind != "not affine":
        assert layout.pairs == (Pair(0, 2), Pair(1, 3)) and layout.scale == pytest.approx(3.0, abs=1e-3)


def test_parts_that_are_made_of_rows_of_their_own_are_not_taken_for_slices_of_one_guidance():
    def of_regions(uncond, left, right, latents):
        conds = torch.cat([left[..., :3], right[..., 3:]], dim=-1)
        return uncond + 3.0 * (conds - uncond)

    assert probe(of_regions, ((0, 1, 2),), stated={"guidance_scale": 3.0}).kind == "not affine"


@pytest.mark.parametrize(("calls", "kind"), [(((0, 1),), "affine"), (((0,), (1,)), "not affine")])
def test_samples_with_scales_of_their_own_are_guided_by_a_branch_only_where_both_rows_are_at_hand(calls, kind):
    scales = itertools.cycle([3.0, 6.0])
    layout = probe(lambda *rows: plain(next(scales))(*rows), calls, samples=2)
    assert layout.kind == kind


def test_without_guidance_there_are_no_pairs():
    layout = probe(lambda cond, latents: -cond, calls=((0,),), samples=2)
    assert layout.kind == "affine" and not layout.is_guided


def test_rows_that_weigh_nothing_yet_are_the_unconditional_ones():
    """A scale that begins at 1 and grows: both rows are evaluated from the first step on."""
    layout = probe(plain(1.0), calls=((1, 0),), samples=2)
    assert layout.pairs == (Pair(2, 0), Pair(3, 1)) and layout.scale == 1.0
    rows = {row: torch.randn(SHAPE, generator=torch.Generator().manual_seed(row)) for row in range(4)}
    answers = answered(layout, 3.0, 0, rows, rows[0])
    torch.testing.assert_close(plain(2.0)(answers[2], answers[0], None), plain(3.0)(rows[2], rows[0], None))


def perturbed(w):
    return lambda cond, uncond, other, latents: uncond + w * (cond - uncond) + 3.0 * (cond - other)


def of_text_and_image(w):
    return lambda text, image, uncond, latents: uncond + w * (text - image) + 1.5 * (image - uncond)


@pytest.mark.parametrize("rule", [perturbed, of_text_and_image])
def test_of_three_rows_those_of_the_scale_are_told_by_changing_it(rule):
    layout = probe(rule(4.0), calls=((1, 0, 2),), own_scale=4.0, changed=rule(5.0))
    assert layout.pairs == (Pair(1, 0),) and layout.others and layout.scale == 4.0
    assert probe(rule(4.0), calls=((1, 0, 2),)).kind == "not affine", "where the scale cannot be changed"


@pytest.mark.parametrize(("rule", "other"), [(perturbed, 3.0), (of_text_and_image, 1.5)])
@pytest.mark.parametrize("samples", [1, 2])
def test_of_three_rows_those_of_a_scale_that_cannot_be_changed_are_told_by_the_scales_of_the_call(rule, other, samples):
    stated = {"guidance_scale": 4.2, "other_scale": other}
    layout = probe(rule(4.2), ((1, 0, 2),), samples, stated=stated)
    assert layout.pairs == tuple(Pair(samples + s, s) for s in range(samples)) and layout.scale == 4.2
    assert probe(rule(4.2), ((1, 0, 2),), stated={"guidance_scale": 4.2}).kind == "not affine"
    as_much = {"guidance_scale": other, "other_scale": other}
    assert probe(rule(other), ((1, 0, 2),), stated=as_much).kind == "not affine", "two rows may be meant"


@pytest.mark.parametrize(
    "name", ["StableDiffusionXLInstructPix2PixPipeline", "PixArtSigmaPAGPipeline", "SanaPAGPipeline"]
)
def test_three_rows_at_a_branchs_scale_are_the_pipeline_called_with_it(name):
    pipe, call = build(name)
    call |= {"guidance_scale": 4.2, "num_inference_steps": 3}
    for scale in (2.0, 6.0):
        expected = result_of(pipe, call | {"guidance_scale": scale})
        with reflection(pipe, strong=Branch(), weak=Branch(), base=Branch(guidance_scale=scale), reflection_steps=0):
            assert torch.allclose(result_of(pipe, call), expected, rtol=1e-3, atol=1e-4)
    gap = {"strong": Branch(guidance_scale=6.0), "weak": Branch(guidance_scale=2.0)}
    with reflection(pipe, **gap, inversion="paper") as done:
        assert not torch.equal(result_of(pipe, call), expected)
    assert done.nfe == {"base": 9, "strong": 6, "weak": 6}


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("shape", [(4, 5, 5), (5, 20)])
def test_rows_of_one_number_tell_weights_where_elements_are_packed_and_dropped(shape, samples):
    layout = probe(lambda *rows: plain(6.0)(*rows)[:, 1:].reshape(shape), calls=((1, 0),), samples=samples)
    assert layout.kind == "affine" and layout.scale == pytest.approx(6.0, abs=1e-3)
    assert layout.pairs == tuple(Pair(samples + s, s) for s in range(samples))
    assert CONSTANT_TURNS == 3


RULES = {
    "plain": plain,
    "of the same norm": functools.partial(of_the_same_norm, dim=0),
    "of three channels": of_three_channels,
}


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("calls", [((0, 1),), ((1, 0),), ((0,), (1,)), ((1,), (0,))])
@pytest.mark.parametrize("rule", RULES)
def test_a_pipeline_makes_the_branchs_scale_of_the_answers_by_its_own_rule(rule, calls, scale):
    layout = probe(RULES[rule](4.0), calls)
    order, needed = [part for parts in calls for part in parts], rows_needed(layout, scale)
    rows = dict(enumerate(torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3)).double()))
    expected = RULES[rule](scale)(rows[order.index(0)], rows[order.index(1)], None)
    if rule != "plain" and calls == ((1,), (0,)):
        with pytest.raises(ValueError, match="comes first"):
            [answered(layout, scale, call, rows, rows[0]) for call in range(2)]
        return
    given, answers = {}, []
    for call in range(len(calls)):
        first = layout.first_row(call)
        given |= {row: rows[row] for row in range(first, first + layout.calls[call]) if row in needed}
        answers += answered(layout, scale, call, given, rows[0])
    made = RULES[rule](4.0)(answers[order.index(0)], answers[order.index(1)], None)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    if scale in (0.0, 1.0) and rule == "plain":
        assert len(needed) == 1, "the other row is not evaluated"


def test_at_a_scale_of_0_a_network_that_is_given_more_channels_than_it_gives_is_answered_for():
    pipe, call = tiny.wan_image_to_video()
    gap = {"strong": Branch(guidance_scale=4.0), "weak": Branch(guidance_scale=0.0)}
    with reflection(pipe, **gap, inversion="paper") as reflected:
        assert run(pipe, call | {"num_inference_steps": 3}).isfinite().all()
    assert reflected.nfe == {"base": 6, "strong": 4, "weak": 2}


def test_a_stage_without_guidance_of_its_own_is_not_given_another_scale():
    pipe, call = tiny.wan(two_stage=True)
    scales = {role: Branch(guidance_scale=(scale, 1.0)) for role, scale in (("base", 3), ("strong", 4), ("weak", 2))}
    results = []
    for own in (2.0, 1.0):
        call |= {"guidance_scale": 3.0, "guidance_scale_2": own, "num_inference_steps": 6}
        with reflection(pipe, **scales):
            results.append(run(pipe, call))
    assert torch.allclose(*results)
    with (
        reflection(pipe, strong=Branch(guidance_scale=4.0), weak=Branch()),
        pytest.raises(ValueError, match="neither 0"),
    ):
        run(pipe, call)
