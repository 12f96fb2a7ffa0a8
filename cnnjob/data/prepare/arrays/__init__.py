"""Read images stored as arrays: NumPy files, IDX sets with any name, SVHN, and binary versions of known datasets."""
