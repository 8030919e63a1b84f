"""Training, evaluation and checkpoints. Knows nothing of SLURM."""
