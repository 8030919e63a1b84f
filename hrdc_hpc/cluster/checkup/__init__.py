"""What this machine and its cluster lack; one file for each kind of thing that is looked at. Torch-free."""
