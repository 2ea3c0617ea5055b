"""Whether a pair helps, and how far to go with it, told from real clips and samples before anything is rendered."""
