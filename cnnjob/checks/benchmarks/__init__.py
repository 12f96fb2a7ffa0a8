"""Benchmarks: cnnjob beside torch and the limits of the hardware."""
