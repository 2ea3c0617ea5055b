"""Miniature models: real diffusers pipelines of a few megabytes, trained on a world of moving sprites."""
