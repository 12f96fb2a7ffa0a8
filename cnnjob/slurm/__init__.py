"""The cluster: what is asked of SLURM, how a run is submitted, lives on a node and comes back."""
