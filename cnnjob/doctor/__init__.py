"""``cnnjob doctor``: checks of this machine, the runs' file system and the cluster."""
