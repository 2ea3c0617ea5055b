"""Settings every test shares."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("W2SD_TRACEBACK", "1")  # an error that nobody foresaw is a failure of a test

import torch

torch.set_num_threads(1)
