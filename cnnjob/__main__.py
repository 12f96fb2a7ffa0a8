"""Entry point of ``python -m cnnjob``."""

from cnnjob.cli.main import main

main()
