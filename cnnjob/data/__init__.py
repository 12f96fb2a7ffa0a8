"""Datasets, one HDF5 file each: reading, checking and preparing them."""
