"""Read images that are stored as arrays: NumPy files, IDX sets of any name, binary files of known datasets."""
