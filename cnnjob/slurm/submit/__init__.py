"""What is asked of SLURM, and how it is submitted."""
