"""Benchmarks that compare cnnjob with torch and with the limits of the hardware."""
