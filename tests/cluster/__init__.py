"""On a real SLURM, started for the tests on this machine."""
