"""cnnjob doctor: what this machine and this cluster can do."""
