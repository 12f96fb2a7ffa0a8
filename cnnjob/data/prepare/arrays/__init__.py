"""Read images stored as arrays: NumPy files, IDX files, SVHN, and binary versions of known datasets."""
