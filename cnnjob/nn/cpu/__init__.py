"""NumPy backend: networks on the CPU, on all cores that a job may use."""
