"""Datasets: one HDF5 file each, and how it is read."""
