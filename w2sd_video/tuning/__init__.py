"""The search for the best setting of a pair at a budget: the parts of ``python -m w2sd_video.tune``."""
