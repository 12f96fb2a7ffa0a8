"""Resource requests, batch scripts and their submission to SLURM."""
