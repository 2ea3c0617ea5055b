"""Fields of a branch that are on in a window: each equals a stock pipeline, or a plain loop, that switches them."""

import pytest
import tiny
import torch
from pipelines_table import run
from tiny.variants import build as build_variant

from w2sd_video import Branch, predictor, reflection, sample
from w2sd_video.strength import StrengthSchedule, log_snr
from w2sd_video.trajectory import Trajectory
from w2sd_video.window import Moment, Window

STEPS = 6
WINDOWS = {"late": (0.5, 1.0), "middle": (1 / 3, 2 / 3), "all": (0.0, 1.0), "none": (0.5, 0.5)}


def rows_counted(pipe):
    """Count the rows of a network."""
    rows = []
    network = getattr(pipe, "transformer", None) or pipe.unet
    part = network.conv_in if hasattr(network, "conv_in") else network.norm_out
    handle = part.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    return rows, handle


def interval_guidance(pipe, call, on):
    """A stock pipeline whose guidance is off outside of some steps: its callback changes the scale."""
    scale = call["guidance_scale"]

    def switch(pipe, index, timestep, kwargs):
        pipe._guidance_scale = scale if index + 1 in on else 1.0 + 1e-9
        return kwargs

    call = {**call, "guidance_scale": scale if 0 in on else 1.0 + 1e-9}
    return run(pipe, call | {"callback_on_step_end": switch})


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    "build", [tiny.stable_diffusion, lambda: build_variant("CogView4Pipeline")], ids=["batch", "calls"]
)
def test_interval_guidance_of_a_stock_pipeline(build, window):
    pipe, call = build()
    call = {**call, "guidance_scale": 4.0, "num_inference_steps": STEPS}
    start, stop = WINDOWS[window]
    on = range(round(start * STEPS), round(stop * STEPS))
    expected = interval_guidance(pipe, call, on)
    rows, handle = rows_counted(pipe)
    base = Branch(guidance_scale=4.0, windows={"guidance_scale": WINDOWS[window]})
    with reflection(pipe, strong=Branch(), weak=Branch(), base=base, reflection_steps=0) as done:
        result = run(pipe, call)
    handle.remove()
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
    assert done.nfe["base"] == sum(rows) == STEPS + len(on)


def test_a_schedule_of_guidance_follows_the_noise_level():
    pipe, call = tiny.stable_diffusion()
    call = {**call, "guidance_scale": 4.0, "num_inference_steps": STEPS}
    bell = StrengthSchedule((-3.0, -1.0, 1.0), (0.0, 1.0, 0.0))
    pipe.scheduler.set_timesteps(STEPS)
    trajectory = Trajectory(pipe.scheduler)
    scales = [1 + 3 * bell.at(trajectory.level(i)) for i in range(STEPS)]

    def switch(pipe, index, timestep, kwargs):
        pipe._guidance_scale = scales[min(index + 1, STEPS - 1)] + 1e-9
        return kwargs

    expected = run(pipe, {**call, "guidance_scale": scales[0] + 1e-9, "callback_on_step_end": switch})
    base = Branch(guidance_scale=4.0, windows={"guidance_scale": bell})
    with reflection(pipe, strong=Branch(), weak=Branch(), base=base, reflection_steps=0):
        torch.testing.assert_close(run(pipe, call), expected, rtol=1e-3, atol=1e-3)


def test_skipped_layers_are_skipped_in_their_window_only():
    """Where they are not, the weak branch is the strong one, and there is nothing to reflect."""
    pipe, call = tiny.cogvideox()
    call = {**call, "num_inference_steps": STEPS}

    def evaluations(weak):
        seen = []
        block = pipe.transformer.transformer_blocks[1].ff
        handle = block.register_forward_hook(lambda *_: seen.append(1))
        with reflection(pipe, strong=Branch(), weak=weak, reflection_steps=STEPS - 1, inversion="current") as done:
            run(pipe, call)
        handle.remove()
        rows = done.nfe["base"] // STEPS
        assert len(seen) == STEPS + done.nfe["strong"] // rows, "weak leaves it out"
        return done.nfe["strong"] // rows, done.nfe["weak"] // rows

    assert evaluations(Branch(skip_layers=[1])) == (STEPS - 1, STEPS - 1)
    assert evaluations(Branch(skip_layers=[1], windows={"skip_layers": (0.5, 1.0)})) == (2, 2)  # 3 and 4 of 0 to 4
    assert evaluations(Branch()) == (STEPS - 1, 0), "one evaluation serves both"


def test_a_window_of_log_snrs_holds_by_level():
    pipe, call = tiny.stable_diffusion()
    call = {**call, "guidance_scale": 4.0, "num_inference_steps": STEPS}
    pipe.scheduler.set_timesteps(STEPS)
    trajectory = Trajectory(pipe.scheduler)
    inside = sum(-3.0 <= log_snr(trajectory.level(i)) < 0.0 for i in range(STEPS))
    base = Branch(guidance_scale=4.0, windows={"guidance_scale": Window(-3.0, 0.0, "log_snr")})
    with reflection(pipe, strong=Branch(), weak=Branch(), base=base, reflection_steps=0) as done:
        run(pipe, call)
    assert done.nfe["base"] == STEPS + inside and 0 < inside < STEPS


def test_a_branch_at_a_moment():
    level = (0.6, 0.8)
    branch = Branch(guidance_scale=(5.0, 3.0), lora={"a": 0.5}, windows={"guidance_scale": (0, 0.5), "lora": (0.5, 1)})
    assert branch.at(Moment(0, 4, level)) == Branch(guidance_scale=(5.0, 3.0))
    assert branch.at(Moment(2, 4, level)) == Branch(guidance_scale=(1.0, 1.0), lora={"a": 0.5})


@pytest.mark.parametrize(
    ("windows", "error", "words"),
    [
        ({"lora": (0, 1)}, ValueError, "'lora', which is no field that this branch sets"),
        ({"scale": (0, 1)}, ValueError, "'scale', which is no field"),
        ({"guidance_scale": 3}, ValueError, "must be a window"),
        ({"guidance_scale": (0.5, 2)}, ValueError, "0 <= start <= stop <= 1"),
        ({"skip_layers": StrengthSchedule((0.0,), (1.0,))}, ValueError, "only guidance_scale"),
        ([("guidance_scale", (0, 1))], TypeError, "must map names"),
        ({1: (0, 1)}, ValueError, "has 1, which is no field"),
    ],
)
def test_windows_that_make_no_sense_are_refused(windows, error, words):
    with pytest.raises(error, match=words):
        Branch(guidance_scale=3.0, skip_layers=[1], windows=windows)


@pytest.mark.parametrize("inversion", ["paper", "explicit", "current", "implicit"])
def test_where_windows_leave_no_gap_nothing_is_reflected(inversion):
    """A gap that is on in the later half is that gap, reflected in the later half alone."""
    pipe, call = tiny.pixart()
    call = {**call, "num_inference_steps": STEPS}

    def sampled(weak, steps):
        with reflection(pipe, strong=Branch(), weak=weak, reflection_steps=steps, inversion=inversion) as done:
            return run(pipe, call), done

    windowed, done = sampled(Branch(skip_layers=[1], windows={"skip_layers": (0.5, 1.0)}), None)
    expected, done_there = sampled(Branch(skip_layers=[1]), (0.5, 1 - 1 / STEPS))  # the last step is not, usually
    stock, _ = sampled(Branch(skip_layers=[1]), 0)
    assert torch.equal(windowed, expected) and not torch.equal(windowed, stock)
    assert done == done_there and done.reflected_steps == 2
    nowhere, done = sampled(Branch(skip_layers=[1], windows={"skip_layers": (0.5, 0.5)}), None)
    assert torch.equal(nowhere, stock) and done.nfe["strong"] == done.nfe["weak"] == done.reflected_steps == 0


def test_a_predictor_tells_where_windows_leave_no_gap():
    pipe, call = tiny.pixart()
    call = {**call, "num_inference_steps": STEPS, "output_type": "latent"}
    weak = Branch(skip_layers=[1], windows={"skip_layers": (0.5, 1.0)})
    with reflection(pipe, strong=Branch(), weak=weak) as done:
        expected = run(pipe, call)
    generator = torch.Generator().manual_seed(7)  # as `run` has it
    with predictor(pipe, strong=Branch(), weak=weak, **call, generator=generator) as predict:
        sampled = sample(predict, predict.latents, predict.scheduler)
    torch.testing.assert_close(sampled.latents, expected)
    assert sampled.nfe["strong"] == 2 and done.reflected_steps == 2
