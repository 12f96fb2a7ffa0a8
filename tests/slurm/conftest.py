"""What the tests of the restart share."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _sigterm_as_before() -> Iterator[None]:
    """The process that decides about a restart ignores SIGTERM; what other tests start must not inherit that."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
