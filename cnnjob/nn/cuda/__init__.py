"""CUDA backend: networks on an NVIDIA GPU."""
