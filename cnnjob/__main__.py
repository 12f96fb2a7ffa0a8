"""``python -m cnnjob`` is the command ``cnnjob``."""

from cnnjob.cli.main import main

main()
