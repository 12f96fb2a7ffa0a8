"""Calls to SLURM's commands and parsing of their output."""
