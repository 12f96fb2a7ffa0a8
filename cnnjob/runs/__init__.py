"""Run folders: their files, owners and states. This package does not query SLURM."""
