"""Model families: where a denoiser lives, how its pipeline is loaded, how its two denoisers share memory."""
