"""SLURM's own commands and what they print."""
