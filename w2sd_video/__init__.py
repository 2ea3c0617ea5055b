"""Weak-to-Strong Diffusion: a sampler plugin for diffusers pipelines."""
