"""SLURM support: requesting resources, and submitting, executing, restarting and cancelling runs."""
