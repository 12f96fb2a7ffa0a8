"""The network on an NVIDIA GPU."""
