"""The drill: random faults of all kinds against a short run, and whether it ends as if nothing had been."""
