"""SLURM's commands: calling them and parsing what they print."""
