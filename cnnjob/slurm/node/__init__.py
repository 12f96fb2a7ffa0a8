"""Code that runs inside a SLURM job."""
