"""Checks for the user's own machine or cluster: exact resume, rehearsals and benchmarks."""
