"""Plants faults, by number, and runs the tests of the kernels on each: `python -m tests.cuda.planting 3 7`.

Each has a process of its own; what is the same for all is loaded and computed before those are forked.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

import tests.conftest  # noqa: F401 - also loaded here for all
from cnnjob.nn.cuda.device import kernel_source
from tests.cuda.more_faults import ALL_FAULTS
from tests.cuda.shop import WORKS, reference

NAMES = "kernels", "stages", "batches", "steps", "muon", "tiled_kernels"
TESTS = [str(Path(__file__).with_name(f"test_{name}.py")) for name in NAMES]
MOST_SECONDS = 120
"""Of a fault's tests; without an effect all of them run to the end, which may take five times as long."""
MOST = "not tiled_kernels or forward"
"""What is run without a fault, and for faults that name no tests: those of tiles are slow, so in one order only."""


def passes(source: str, chosen: str, folder: str) -> bool:
    """Whether the tests pass with these kernels; a crash is no pass, nor is one that does not end."""
    if not (child := os.fork()):
        planted = Path(tempfile.mkdtemp(dir=folder)) / "planted.cu"
        planted.write_text(source)
        os.environ["CNNJOB_TEST_KERNELS"] = str(planted)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins take longer to load than most faults to find
        files = [path for path in TESTS if Path(path).stem in chosen] or TESTS
        os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", chosen, *files])))
    started = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        if time.monotonic() - started > MOST_SECONDS * (5 if chosen == MOST else 1):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    for name in WORKS:
        reference(name)
    with tempfile.TemporaryDirectory() as somewhere:
        tempfile.tempdir = somewhere  # what is compiled goes with it
        for argument in sys.argv[1:]:
            fault = ALL_FAULTS[int(argument)] if int(argument) >= 0 else None
            changed = fault.planted(kernel_source()) if fault else kernel_source()
            outcome = "passes" if passes(changed, (fault and fault.tests) or MOST, somewhere) else "fails"
            sys.stdout.write(f"{argument} {outcome}\n")
            sys.stdout.flush()
