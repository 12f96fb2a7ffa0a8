"""Copying of runs to TensorBoard and Weights & Biases."""
