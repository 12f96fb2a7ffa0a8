"""What all tests share: hypothesis draws the same examples every time, and never looks at the clock.

``pytest --hypothesis-profile explore`` draws new ones, and many. Ctrl-C is heard, here and in what the tests start,
also where the tests themselves were started in the background by a shell that has it ignored.
"""

import signal

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("same")

signal.signal(signal.SIGINT, signal.default_int_handler)
