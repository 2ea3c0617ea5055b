"""The least that a configuration must hold."""

MINIMAL = {"prompts": ["a fox"], "model": {"family": "cogvideox", "pretrained": "owner/name"}}
PIPELINE = ["--model.family", "pipeline"]
