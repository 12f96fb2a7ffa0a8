"""Benchmarks: cnnjob compared with torch and with the limits of the hardware."""
