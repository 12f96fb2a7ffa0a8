"""Read images stored as arrays: NumPy files, IDX sets with any name, and binary versions of known datasets."""
