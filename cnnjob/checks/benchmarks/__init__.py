"""Measured side by side: cnnjob, torch and the hardware's limits."""
