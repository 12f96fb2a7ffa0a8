"""Source files to one HDF5 file."""
