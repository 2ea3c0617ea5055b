"""Whether a pair helps, and how far to go with it, told from real clips and samples before anything is rendered."""

from __future__ import annotations

from w2sd_video._moved import names_of

__getattr__ = names_of(__name__)
