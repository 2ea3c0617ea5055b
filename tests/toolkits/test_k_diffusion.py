"""Samplers of k-diffusion's signature, reflected: against loops written plainly, and the samplers alone."""

import copy

import plain_samplers
import pytest
import torch

from w2sd_video import Window
from w2sd_video.backends.k_diffusion import sample_euler, sample_w2sd

REAL = plain_samplers.real_samplers()
SIGMAS = {
    "variance_exploding": torch.tensor([14.6, 9.0, 5.0, 2.4, 1.1, 0.5, 0.2, 0.0]),
    "flow": torch.tensor([1.0, 0.95, 0.88, 0.75, 0.6, 0.4, 0.2, 0.0]),
}
NAMES = (
    *("euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral", "dpmpp_sde"),
    *("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"),
)
PLAIN = (sample_euler, plain_samplers.heun, plain_samplers.two_step, plain_samplers.ancestral)
SAMPLERS = [
    *PLAIN,
    *(
        pytest.param(name, marks=pytest.mark.skipif(REAL is None, reason="needs k-diffusion, torchdiffeq and torchsde"))
        for name in NAMES
    ),
]


def noise(dtype=torch.float64, sigma=14.6):
    drawn = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (sigma * drawn).to(dtype)


class Network:
    """A smooth, non-linear denoiser, which counts its calls and knows what it was given."""

    def __init__(self, gain=1.0):
        self.gain, self.calls, self.bias = gain, 0, None

    def __call__(self, x, sigma, bias=0.0):
        self.calls, self.bias = self.calls + 1, bias
        level = sigma.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return self.gain * torch.tanh(x / (1 + level) + bias) + 0.1 * x.roll(1, -1) / (1 + level) ** 2


MODEL, STRONG, WEAK = Network(), Network(1.1), Network(0.8)


def alone(sampler, x, sigmas, **options):
    function = getattr(REAL, f"sample_{sampler}") if isinstance(sampler, str) else sampler
    torch.manual_seed(0)
    return function(MODEL, x, sigmas, extra_args={"bias": 0.1}, disable=True, **options)


def reflected(sampler, x, sigmas, **settings):
    torch.manual_seed(0)
    settings = {"weak": WEAK, "kind": "variance_exploding", **settings}
    return sample_w2sd(MODEL, x, sigmas, {"bias": 0.1}, None, True, sampler=sampler, **settings)


# --- off, and without a gap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_off_is_the_sampler_alone(sampler, dtype):
    sigmas, nfe = SIGMAS["variance_exploding"], {}
    off = reflected(sampler, noise(dtype), sigmas, reflection_steps=0, weak=None, kind=None, nfe=nfe)
    MODEL.calls = 0
    assert torch.equal(off, alone(sampler, noise(dtype), sigmas))
    assert nfe == {"base": MODEL.calls, "strong": 0, "weak": 0}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_a_gap_it_is_the_sampler_alone_to_rounding(sampler):
    """Also the numbers that a stochastic sampler draws are the same, though it was tried before."""
    sigmas = SIGMAS["variance_exploding"]
    same = reflected(sampler, noise(), sigmas, weak=MODEL, inversion="current")
    torch.testing.assert_close(same, alone(sampler, noise(), sigmas), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(reflected(sampler, noise(), sigmas), same, rtol=1e-2)


# --- on ------------------------------------------------------------------------------------------------------------


def plain_reflection(x, sigma, lower_sigma, inversion, kind, reading):
    """Euler down by strong's denoised sample, up by weak's; a gap is of the noise, unless there is no signal."""
    alpha = {"variance_exploding": lambda s: 1.0, "flow": lambda s: 1 - s}[kind]
    ones = x.new_ones([len(x)])
    strong = STRONG(x, sigma * ones, 0.1)
    lower = strong + lower_sigma / sigma * (x - strong)
    if inversion == "current":
        at = x
    else:
        # A denoiser scales its input for the sigma it is told.
        at = lower * ((1 + sigma**2) / (1 + lower_sigma**2)) ** 0.5 if kind == "variance_exploding" else lower
    weak = WEAK(at, sigma * ones, 0.1)
    if reading == "sample" or alpha(sigma) == 0:
        return (lower - (alpha(lower_sigma) - lower_sigma / sigma * alpha(sigma)) * weak) * sigma / lower_sigma
    dirt = (at - alpha(sigma) * weak) / sigma
    return alpha(sigma) * (lower - lower_sigma * dirt) / alpha(lower_sigma) + sigma * dirt


def reflect_each_step(sampler_function, x, sigmas, steps, inversion, kind, reading, **options):
    """A sampler that keeps nothing from step to step, run one step at a time."""
    sigmas = sigmas.double()
    for i in range(len(sigmas) - 1):
        if i < steps:
            x = plain_reflection(x, sigmas[i], sigmas[i + 1], inversion, kind, reading)
        x = sampler_function(MODEL, x, sigmas[i : i + 2], extra_args={"bias": 0.1}, disable=True, **options)
    return x


@pytest.mark.parametrize("kind", SIGMAS)
@pytest.mark.parametrize("reading", ["epsilon", "sample"])
@pytest.mark.parametrize("inversion", ["paper", "current"])
@pytest.mark.parametrize(
    "sampler", [sample_euler, plain_samplers.heun, plain_samplers.ancestral], ids=lambda f: f.__name__
)
def test_on_equals_a_plain_loop(sampler, inversion, reading, kind):
    sigmas, nfe = SIGMAS[kind].double(), {}
    x = noise(sigma=float(sigmas[0]))
    given = x.clone()
    ours = reflected(
        sampler, x, sigmas, strong=STRONG, kind=kind, inversion=inversion, reading=reading, reflection_steps=4, nfe=nfe
    )
    torch.manual_seed(0)
    plain = reflect_each_step(sampler, x, sigmas, 4, inversion, kind, reading)
    torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-8)
    assert nfe == {"base": 13 if sampler is plain_samplers.heun else 7, "strong": 4, "weak": 4}
    assert torch.equal(x, given)


def test_a_multistep_sampler_goes_on_with_its_history_from_the_reflected_latents():
    """DPM-Solver++(2M) as a loop with the reflection written into it."""
    sigmas, x, before, step_before = SIGMAS["variance_exploding"].double(), noise(), None, None
    for i in range(len(sigmas) - 1):
        if i < 4:
            x = plain_reflection(x, sigmas[i], sigmas[i + 1], "paper", "variance_exploding", "epsilon")
        denoised = MODEL(x, sigmas[i] * x.new_ones([len(x)]), 0.1)
        ahead = denoised
        if sigmas[i + 1] > 0:
            step = (sigmas[i] / sigmas[i + 1]).log()
            if before is not None:
                ahead = denoised + (denoised - before) * step / step_before / 2
            before, step_before = denoised, step
        x = ahead + sigmas[i + 1] / sigmas[i] * (x - ahead)
    settings = {"strong": STRONG, "reflection_steps": 4}
    samplers = [plain_samplers.two_step, *(["dpmpp_2m"] if REAL else [])]
    for sampler in samplers:
        ours = reflected(sampler, noise(), SIGMAS["variance_exploding"].double(), **settings)
        torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        ({"reflection_steps": None}, (6, 6)),
        ({"reflection_steps": (0.3, 0.6)}, (2, 2)),
        ({"rounds": 2}, (12, 12)),
        ({"inversion": "implicit", "iterations": 3}, (6, 18)),
        ({"inversion": "explicit"}, (6, 6)),
        ({"inversion": "resample", "weak": None}, (6, 0)),
        ({"span": 3}, (6, 6)),
        ({"reuse": 2}, (4, 4)),
        ({"strong": MODEL}, (6, 6)),
    ],
)
def test_evaluations_are_counted(settings, evaluations):
    weak, nfe = Network(0.8), {}
    reflected(sample_euler, noise(), SIGMAS["variance_exploding"], **{"weak": weak, "nfe": nfe} | settings)
    assert nfe == {"base": 7, "strong": evaluations[0], "weak": evaluations[1]}
    assert weak.calls == evaluations[1] and (weak.bias == 0.1 or not weak.calls)


PUSHED = {"reflection_steps": 0, "autoguidance": 1.5, "autoguidance_steps": (0.5, 1.0)}


@pytest.mark.parametrize("gap", ["base", "strong"])
@pytest.mark.parametrize("kind", SIGMAS)
@pytest.mark.parametrize("sampler", [*SAMPLERS, plain_samplers.correcting])
def test_autoguidance_is_the_sampler_alone_on_a_pushed_model(sampler, kind, gap):
    """Of seven steps the last three are pushed: from the fifth sigma down."""
    sigmas, nfe = SIGMAS[kind], {}

    def pushed(x, sigma, bias=0.0):
        denoised = MODEL(x, sigma, bias)
        if sigma[0] > sigmas[4] * 1.0001:
            return denoised
        better = denoised if gap == "base" else STRONG(x, sigma, bias)
        return denoised + 1.5 * (better - WEAK(x, sigma, bias))

    x = noise(sigma=float(sigmas[0]))
    settings = {"kind": kind, "strong": STRONG, "autoguidance_gap": gap, **PUSHED}
    WEAK.calls = 0
    ours, evaluated = reflected(sampler, x.clone(), sigmas, nfe=nfe, **settings), WEAK.calls
    function = getattr(REAL, f"sample_{sampler}") if isinstance(sampler, str) else sampler
    torch.manual_seed(0)
    plain = function(pushed, x, sigmas, extra_args={"bias": 0.1}, disable=True)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(ours, alone(sampler, x, sigmas))
    assert 0 < nfe["weak"] == evaluated < nfe["base"] and nfe["strong"] == (0 if gap == "base" else nfe["weak"])


def test_autoguidance_beside_a_reflection_pushes_the_step_that_counts():
    sigmas = SIGMAS["variance_exploding"].double()
    x = noise()
    for i in range(len(sigmas) - 1):
        if i < 3:
            x = plain_reflection(x, sigmas[i], sigmas[i + 1], "current", "variance_exploding", "epsilon")
        level = sigmas[i] * x.new_ones([len(x)])
        denoised = MODEL(x, level, 0.1)
        if 2 <= i < 5:
            denoised = denoised + 0.7 * (denoised - WEAK(x, level, 0.1))
        x = denoised + sigmas[i + 1] / sigmas[i] * (x - denoised)
    settings = {"strong": STRONG, "inversion": "current", "reflection_steps": 3}
    ours = reflected("euler", noise(), sigmas, autoguidance=0.7, autoguidance_steps=Window(0.3, 0.7), **settings)
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_reflected_in_float32(dtype):
    """The displacement is that of double precision, rounded once."""
    seen, x = [], noise(dtype, 5.0)
    for start in (x, x.double()):
        sample_w2sd(
            lambda x, sigma: (seen.append(x.clone()), x)[1],
            start,
            torch.tensor([5.0, 4.0]),
            disable=True,
            strong=lambda x, sigma: torch.full_like(x, 0.5),
            weak=lambda x, sigma: torch.full_like(x, -0.25),
            kind="variance_exploding",
            inversion="current",
            reflection_steps=1,
        )
    assert seen[0].dtype == dtype and not torch.equal(seen[0], x)
    assert torch.equal(seen[0], seen[1].to(dtype))


def test_inference_mode_changes_nothing():
    """ComfyUI samples in it."""
    sigmas = SIGMAS["variance_exploding"]
    with torch.inference_mode():
        inside = reflected(plain_samplers.two_step, noise(), sigmas, reuse=2)
    assert torch.equal(inside, reflected(plain_samplers.two_step, noise(), sigmas, reuse=2))


def test_callbacks_are_the_samplers_own_and_see_the_reflected_latents():
    seen, sigmas = [], SIGMAS["variance_exploding"]
    x = noise()
    sample_w2sd(MODEL, x, sigmas, {}, lambda said: seen.append(said), True, weak=WEAK, kind="variance_exploding")
    assert [said["i"] for said in seen] == list(range(7))
    assert not torch.equal(seen[0]["x"], x) and set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}


def test_options_are_the_samplers_own_also_noise_of_the_shape_of_the_latents():
    """The trial's latents have another shape, and no noise of the user's is drawn for it."""
    if REAL is None:
        pytest.skip("needs k-diffusion, torchdiffeq and torchsde")
    sigmas, drawn = SIGMAS["variance_exploding"], []

    def noise_sampler(sigma, sigma_next):
        drawn.append(float(sigma))
        return noise(sigma=1.0)

    same = {"weak": MODEL, "inversion": "current", "eta": 0.5, "noise_sampler": noise_sampler}
    ours = reflected("euler_ancestral", noise(), sigmas, **same)
    assert drawn == pytest.approx(sigmas[:-2].tolist())
    plain = alone("euler_ancestral", noise(), sigmas, eta=0.5, noise_sampler=noise_sampler)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    other = alone("euler_ancestral", noise(), sigmas, eta=1.0, noise_sampler=noise_sampler)
    assert not torch.allclose(ours, other)


def test_euler_is_bit_equal_to_that_of_k_diffusion():
    if REAL is None:
        pytest.skip("needs k-diffusion, torchdiffeq and torchsde")
    sigmas = SIGMAS["variance_exploding"]
    assert torch.equal(sample_euler(MODEL, noise(), sigmas, disable=True), REAL.sample_euler(MODEL, noise(), sigmas))


# --- what is left behind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks", ["callback", "weak", "model"])
def test_an_interrupt_leaves_nothing_behind(breaks):
    class Interrupt(BaseException):
        pass

    def interrupted(*given, **more):
        raise Interrupt

    model, x, extra_args, nfe = Network(), noise(), {"bias": 0.1}, {"base": 100}
    before = copy.deepcopy(vars(model)), x.clone(), torch.get_rng_state()
    settings = {"weak": interrupted if breaks == "weak" else WEAK, "kind": "variance_exploding", "nfe": nfe}
    with pytest.raises(Interrupt):
        sample_w2sd(
            interrupted if breaks == "model" else model,
            x,
            SIGMAS["variance_exploding"],
            extra_args,
            interrupted if breaks == "callback" else None,
            True,
            **settings,
            strong=STRONG,
        )
    assert torch.equal(x, before[1]) and torch.equal(torch.get_rng_state(), before[2]) and extra_args == {"bias": 0.1}
    assert {**vars(model), "calls": 0, "bias": None} == before[0] and nfe["strong"] == 1


def test_attributes_of_the_model_are_there_for_the_sampler():
    model = Network()
    model.inner_model = object()

    def asking(given, *arguments, **more):
        assert given.inner_model is model.inner_model and not hasattr(given, "no_such_thing")
        return sample_euler(given, *arguments, **more)

    sample_w2sd(model, noise(), SIGMAS["variance_exploding"], weak=WEAK, kind="variance_exploding", sampler=asking)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (plain_samplers.churning, r"at step 0 it calls the model at sigma 17.52, and not at the 14.6 of the sigmas"),
        (plain_samplers.restarting, r"must call back once a step, 0 to 6 in order"),
        (plain_samplers.silent, r"must call back once a step, 0 to 6 in order"),
        (plain_samplers.correcting, r"correcting cannot be reflected: it loses what is added to its latents"),
        (plain_samplers.copying, r"copying cannot be reflected: it loses what is added to its latents"),
        (plain_samplers.needing_a_network, r"a trial without a real model, .*fails, .*KeyError: 'hooks'"),
    ],
)
def test_samplers_that_cannot_be_reflected_are_refused_before_any_evaluation(sampler, said):
    model = Network()
    settings = {"weak": WEAK, "kind": "variance_exploding", "sampler": sampler}
    with pytest.raises(ValueError, match=said):
        sample_w2sd(model, noise(), SIGMAS["variance_exploding"], {}, **settings)
    assert model.calls == 0
    if sampler is not plain_samplers.needing_a_network:
        sample_w2sd(model, noise(), SIGMAS["variance_exploding"], {}, **settings, reflection_steps=0)
        assert model.calls


@pytest.mark.skipif(REAL is None, reason="needs k-diffusion, torchdiffeq and torchsde")
def test_samplers_of_k_diffusion_that_cannot_be_reflected():
    sigmas = SIGMAS["variance_exploding"]
    with pytest.raises(ValueError, match=r"churn\? leave s_churn at 0"):
        reflected("heun", noise(), sigmas, s_churn=5.0)
    for name in ("dpm_fast", "dpm_adaptive"):
        with pytest.raises(TypeError, match=rf"sampler {name} must take \(model, x, sigmas, .*missing a required"):
            reflected(name, noise(), sigmas)
    with pytest.raises(ValueError, match=r"'uni_pc' is not one of k-diffusion: .*dpmpp_2m.*heun"):
        reflected("uni_pc", noise(), sigmas)


def test_a_sampler_that_does_otherwise_than_in_its_trial():
    runs = []

    def fickle(model, x, sigmas, extra_args=None, callback=None, disable=None):
        runs.append(x.shape)
        if x.ndim > 2:
            model(x, sigmas[0] * x.new_ones([len(x)]), **extra_args)
        return sample_euler(model, x, sigmas, extra_args, callback, disable)

    with pytest.raises(RuntimeError, match=r"fickle began step 0 at call 1 of the model, and in its trial at call 0"):
        reflected(fickle, noise(), SIGMAS["variance_exploding"])
    assert len(runs) == 3  # two for the trial


def test_a_name_without_k_diffusion(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "k_diffusion.sampling", None)
    with pytest.raises(ValueError, match="'heun' is one of k-diffusion, which cannot be imported"):
        reflected("heun", noise(), SIGMAS["variance_exploding"])


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"weak": None}, ValueError, "weak is missing: pass a denoiser"),
        ({"weak": 3}, TypeError, "weak must be a function, got int"),
        ({"strong": 3}, TypeError, "strong must be a function, got int"),
        ({"kind": None}, ValueError, "kind must be 'variance_exploding' .* or 'flow' .*got None"),
        ({"kind": "variance_preserving"}, ValueError, "kind must be 'variance_exploding'"),
        ({"kind": "flow"}, ValueError, "sigmas of kind 'flow' must be from 0 to 1, got 14.6"),
        ({"sigmas": torch.tensor([1.0, 2.0, 0.0])}, ValueError, "must fall .* but rise from 1 to 2 at step 0"),
        ({"sigmas": torch.tensor([999, 500, 0])}, TypeError, "floating-point noise levels, .*timesteps"),
        ({"sigmas": [2.0, 1.0, 0.0]}, TypeError, "sigmas must be a floating-point tensor"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "x must be a floating-point tensor, got torch.int64"),
        ({"x": torch.tensor(1.0)}, ValueError, "x must have a dimension for the samples"),
        ({"x": torch.tensor([float("nan")])}, ValueError, "x must be finite"),
        ({"weak": lambda x, sigma, **more: x[:1]}, ValueError, "what weak at step 0 returns must have the shape"),
        ({"strong": lambda x, sigma, **more: (x,)}, TypeError, "what strong at step 0 returns must be a floating"),
        ({"weak": lambda x, sigma, **more: x / 0}, ValueError, "weak at step 0 returned non-finite"),
        ({"reflection_steps": 8}, ValueError, "reflection_steps must be from 0 to 7"),
        ({"inversion": "exact"}, ValueError, "inversion must be one of"),
        ({**PUSHED, "weak": None}, ValueError, "weak is missing: .*without autoguidance"),
        ({**PUSHED, "autoguidance_steps": 8}, ValueError, "autoguidance_steps must be from 0 to 7"),
        ({**PUSHED, "reuse": 2}, ValueError, "reuse=2 with autoguidance"),
        ({**PUSHED, "weak": lambda x, sigma, **more: x / 0}, ValueError, "weak at step 4 returned non-finite"),
        ({"sampler": 3}, TypeError, "sampler must be a name or a function, got int"),
        ({"stochasticity": 1.0}, TypeError, "and its options, stochasticity here: got an unexpected keyword"),
    ],
)
def test_what_cannot_be_right_is_one_error(changes, error, said):
    settings = {"weak": WEAK, "x": noise(), "sigmas": SIGMAS["variance_exploding"], "sampler": "euler", **changes}
    with pytest.raises(error, match=said):
        reflected(**settings)
