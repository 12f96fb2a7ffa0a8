"""``python -m cnnjob`` is the command ``cnnjob``."""

from cnnjob.cli import main

main()
