"""``cnnjob doctor``: checks of this machine, the file system of the runs folder, and the cluster."""
