"""From a checked configuration to files: load a pipeline, sample clips with it, write them."""
