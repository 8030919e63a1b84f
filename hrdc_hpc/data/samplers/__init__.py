"""One sampler a file; the file name is the name in the YAML."""
