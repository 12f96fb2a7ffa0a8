"""NumPy backend: networks on the CPU, using all available cores."""
