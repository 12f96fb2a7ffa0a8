"""The folder of a run: its files, its owner and its state. Nothing here queries SLURM."""
