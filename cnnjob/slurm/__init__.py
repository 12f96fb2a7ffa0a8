"""SLURM: requesting resources, submitting runs, running them on a node, restarting and cancelling them."""
