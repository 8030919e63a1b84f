"""From a login node to ranks on compute nodes: submission, the picklable task, signals, rendezvous."""
