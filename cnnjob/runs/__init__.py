"""Run folders: their files, owners and states. Nothing here queries SLURM."""
