"""Run the command line as ``python -m cnnjob``."""

from cnnjob.cli.main import main

main()
