"""Ready-made pairings, one YAML file each."""
