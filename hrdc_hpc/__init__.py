"""Long-tailed recognition by hierarchical rebalancing dual-classifier (HRDC) as SLURM jobs."""

__version__ = "0.1.0"
