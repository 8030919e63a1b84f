"""The run folder: config, manifest, lease, attempts, metrics. Torch-free; one writer per run."""
