"""slurm/dev-cluster: slurmctld and several slurmd on one Linux machine, without systemd or cgroups."""
