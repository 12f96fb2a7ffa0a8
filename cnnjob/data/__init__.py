"""Prepare, read and verify datasets, each stored in one HDF5 file."""
