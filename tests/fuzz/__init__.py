"""Mutated inputs for every reader: `python -m tests.fuzz TARGET… --count N --seed S`.

A target (one file in `targets/`) gives small valid inputs and a function that reads one. Its inputs are mutated and
read in a forked process. These are faults: an error that the target does not declare, a crash, more than 5 s, more than
512 MB. A fault is printed with its seed and kept as a file, which `--input FILE` reads again.
"""
