"""The network on NumPy, with every core."""
