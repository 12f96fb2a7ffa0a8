"""Checks that cnnjob works on the user's machine: exact resume, rehearsals and benchmarks."""
