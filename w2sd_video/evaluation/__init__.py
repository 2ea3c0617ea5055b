"""Arms, their samples, and what is told from them: the parts of ``python -m w2sd_video.evaluate``."""
