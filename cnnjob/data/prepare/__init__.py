"""Convert source files into one HDF5 file."""
