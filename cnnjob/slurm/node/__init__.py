"""What runs inside of a SLURM job."""
