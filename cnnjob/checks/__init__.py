"""Checks of cnnjob itself on the user's machine: exact resume, rehearsals, benchmarks."""
