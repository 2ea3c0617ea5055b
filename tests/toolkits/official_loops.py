"""Loops built like those of the official repositories, with small networks of the same calls.

Each is kept as text, so that the changed lines of docs/guide/official-loops.md can be put into it.
"""

from contextlib import nullcontext

import diffusers
import torch
from torch import nn


class Conv(nn.Module):
    """A small network of latents (B, C, F, H, W), a level and a text."""

    def __init__(self, seed, channels=4):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)
        self.told = []

    def forward(self, latents, time, text):
        self.told.append(time.flatten().tolist())
        shift = torch.sin(time.float() / 300).view(-1, 1, 1, 1, 1) + text.view(-1, 1, 1, 1, 1)
        return torch.tanh(self.conv(latents.float())) + 0.3 * shift


class WanNetwork(Conv):
    """``model([latents], t=(1,), context=[...], seq_len=...)[0]``: a list of samples, without a batch."""

    def forward(self, x, t, context, seq_len):
        assert seq_len == 7
        return [super(WanNetwork, self).forward(each[None], t, text)[0] for each, text in zip(x, context, strict=True)]


class FlowUniPC(diffusers.UniPCMultistepScheduler):
    """Wan's scheduler is diffusers' with flow sigmas, and takes a generator."""

    def __init__(self, shift):
        super().__init__(
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            flow_shift=shift,
            solver_order=2,
            final_sigmas_type="zero",
        )

    def step(self, model_output, timestep, sample, return_dict=True, generator=None):
        return super().step(model_output, timestep, sample, return_dict=return_dict)


WAN = """
class WanT2V:
    def __init__(self):
        self.high_noise_model, self.low_noise_model = WanNetwork(1), WanNetwork(2)
        self.boundary, self.num_train_timesteps, self.device = 0.875, 1000, "cpu"

    def _prepare_model_for_timestep(self, t, boundary, offload_model):
        return self.high_noise_model if t.item() >= boundary else self.low_noise_model

    def generate(self, noise, context, context_null, guide_scale, sampling_steps, shift=5.0, offload_model=False):
        with torch.no_grad():
            boundary = self.boundary * self.num_train_timesteps
            sample_scheduler = FlowUniPC(shift)
            sample_scheduler.set_timesteps(sampling_steps, device=self.device)
            timesteps = sample_scheduler.timesteps
            latents = [noise]

            arg_c = {'context': context, 'seq_len': 7}
            arg_null = {'context': context_null, 'seq_len': 7}

            for _, t in enumerate(timesteps):
                timestep = torch.stack([t])
                model = self._prepare_model_for_timestep(t, boundary, offload_model)
                scale = guide_scale[1] if t.item() >= boundary else guide_scale[0]
                noise_pred_cond = model(latents, t=timestep, **arg_c)[0]
                noise_pred_uncond = model(latents, t=timestep, **arg_null)[0]
                noise_pred = noise_pred_uncond + scale * (noise_pred_cond - noise_pred_uncond)
                temp_x0 = sample_scheduler.step(
                    noise_pred.unsqueeze(0), t, latents[0].unsqueeze(0), return_dict=False, generator=None
                )[0]
                latents = [temp_x0.squeeze(0)]
        return latents[0]
"""


class HunyuanNetwork(Conv):
    """``transformer(latents, t, text_states=..., ..., guidance=..., return_dict=True)["x"]``, distilled."""

    def forward(self, x, t, text_states, text_mask, text_states_2, freqs_cos, freqs_sin, guidance, return_dict):
        assert return_dict and text_mask is not None and freqs_cos is not None and freqs_sin is not None
        text = text_states.mean((1, 2)) + text_states_2.mean(1) + guidance.float() / 4000
        return {"x": super().forward(x, t, text).to(x.dtype)}


class FlowMatchDiscrete:
    """HunyuanVideo's scheduler: Euler on shifted sigmas, in float32."""

    def set_timesteps(self, steps, shift=7.0):
        sigmas = torch.linspace(1, 0, steps + 1)
        self.sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        self.timesteps, self.at = self.sigmas[:-1] * 1000, 0

    def scale_model_input(self, sample, timestep):
        return sample

    def step(self, model_output, timestep, sample, return_dict):
        self.at += 1
        step = self.sigmas[self.at] - self.sigmas[self.at - 1]
        return (sample.to(torch.float32) + model_output.to(torch.float32) * step,)


HUNYUAN = """
class HunyuanVideoPipeline:
    def __init__(self):
        self.transformer, self.scheduler = HunyuanNetwork(3), FlowMatchDiscrete()
        self.do_classifier_free_guidance = False

    @torch.no_grad()
    def __call__(self, latents, prompt_embeds, prompt_embeds_2, embedded_guidance_scale, num_inference_steps):
        prompt_mask, freqs_cis, device = torch.ones(1, 2), (torch.ones(3), torch.ones(3)), "cpu"
        target_dtype, autocast_enabled = torch.bfloat16, False
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps

        # 7. Denoising loop
        with nullcontext():
            for i, t in enumerate(timesteps):
                latent_model_input = latents
                latent_model_input = self.scheduler.scale_model_input(latent_model_input, t)
                t_expand = t.repeat(latent_model_input.shape[0])
                guidance_expand = torch.tensor([embedded_guidance_scale]).to(target_dtype) * 1000.0
                noise_pred = self.transformer(
                    latent_model_input,
                    t_expand,
                    text_states=prompt_embeds,
                    text_mask=prompt_mask,
                    text_states_2=prompt_embeds_2,
                    freqs_cos=freqs_cis[0],
                    freqs_sin=freqs_cis[1],
                    guidance=guidance_expand,
                    return_dict=True,
                )["x"]
                latents = self.scheduler.step(noise_pred, t, latents, return_dict=False)[0]
        return latents
"""


class CogNetwork(Conv):
    """A denoiser of sat: ``denoiser(x, alpha_cumprod_sqrt, cond, idx=...)`` gives x0, of the velocity inside."""

    def forward(self, x, alpha_cumprod_sqrt, cond, idx):
        a = alpha_cumprod_sqrt.view(-1, 1, 1, 1, 1)
        velocity = super().forward(x, idx, cond["crossattn"])
        return a * x - (1 - a**2) ** 0.5 * velocity


class Guider:
    def __init__(self, scale):
        self.scale = scale

    def prepare_inputs(self, x, s, c, uc):
        return torch.cat([x] * 2), torch.cat([s] * 2), {"crossattn": torch.cat((uc["crossattn"], c["crossattn"]))}

    def __call__(self, x, sigma, scale=None):
        x_u, x_c = x.chunk(2)
        return x_u + (self.scale if scale is None else scale) * (x_c - x_u)


COGVIDEO = """
class VideoDDIMSampler:
    def __init__(self, num_steps, guider):
        self.num_steps, self.guider = num_steps, guider

    def prepare_sampling_loop(self, x, cond, uc=None, num_steps=None):
        timesteps = torch.linspace(0, 999, self.num_steps + 1)[1:]
        alpha_cumprod_sqrt = torch.cat([torch.cos(timesteps.flip(0) / 999 * torch.pi / 2), torch.ones(1)])
        alpha_cumprod_sqrt[0] = 0.0
        timesteps = torch.cat([-torch.ones(1), timesteps])
        return x, x.new_ones([x.shape[0]]), alpha_cumprod_sqrt, len(alpha_cumprod_sqrt), cond, uc, timesteps

    def get_sigma_gen(self, num_sigmas):
        return range(num_sigmas - 1)

    def denoise(self, x, denoiser, alpha_cumprod_sqrt, cond, uc, timestep=None, idx=None, scale=None, scale_emb=None, ofs=None):
        told = x.new_ones([x.shape[0]]) * timestep
        if isinstance(scale, torch.Tensor) == False and scale == 1:
            return denoiser(x, alpha_cumprod_sqrt, cond, idx=told).to(torch.float32)
        both = self.guider.prepare_inputs(x, alpha_cumprod_sqrt, cond, uc)
        denoised = denoiser(*both, idx=torch.cat([told] * 2)).to(torch.float32)
        return self.guider(denoised, (1 - alpha_cumprod_sqrt**2) ** 0.5, scale=scale)

    def sampler_step(self, alpha_cumprod_sqrt, next_alpha_cumprod_sqrt, denoiser, x, cond, uc=None, idx=None, timestep=None, scale=None, scale_emb=None, ofs=None):
        denoised = self.denoise(x, denoiser, alpha_cumprod_sqrt, cond, uc, timestep, idx, scale=scale)
        a_t = ((1 - next_alpha_cumprod_sqrt**2) / (1 - alpha_cumprod_sqrt**2)) ** 0.5
        b_t = next_alpha_cumprod_sqrt - alpha_cumprod_sqrt * a_t
        return a_t.view(-1, 1, 1, 1, 1) * x + b_t.view(-1, 1, 1, 1, 1) * denoised

    @torch.no_grad()
    def __call__(self, denoiser, x, cond, uc=None, num_steps=None, scale=None, scale_emb=None, ofs=None):
        x, s_in, alpha_cumprod_sqrt, num_sigmas, cond, uc, timesteps = self.prepare_sampling_loop(
            x, cond, uc, num_steps
        )

        for i in self.get_sigma_gen(num_sigmas):
            x = self.sampler_step(
                s_in * alpha_cumprod_sqrt[i],
                s_in * alpha_cumprod_sqrt[i + 1],
                denoiser,
                x,
                cond,
                uc,
                idx=self.num_steps - i,
                timestep=timesteps[-(i + 1)],
                scale=scale,
                scale_emb=scale_emb,
                ofs=ofs,
            )

        return x
"""  # noqa: E501 -- the lines are as long as they are there

LOOPS = {"Wan 2.2": WAN, "HunyuanVideo": HUNYUAN, "CogVideo": COGVIDEO}


def patched(source, diff):
    """Return a source with the changes of a diff, whose lines are found by their text, whatever their indentation."""
    lines, at, margin = source.splitlines(), 0, 0
    for line in filter(str.strip, diff.splitlines()):
        sign, text = line[0], line[1:]
        if sign == "+":
            lines.insert(at, " " * (indentation(text) + margin) + text.strip())
            at += 1
            continue
        at = next(i for i in range(at, len(lines)) if lines[i].strip() == text.strip())
        margin = indentation(lines[at]) - indentation(text)
        if sign == "-":
            del lines[at]
        else:
            at += 1
    return "\n".join(lines)


def indentation(line):
    return len(line) - len(line.lstrip())


def made(source):
    """Return what a source defines."""
    names = {**globals(), "nullcontext": nullcontext}
    exec(source, names)
    return names
