"""What all tests share: hypothesis draws the same examples every time, and never looks at the clock.

``pytest --hypothesis-profile explore`` draws new ones, and many. Ctrl-C and SIGQUIT act, here and in what the tests
start, also where the tests themselves were started in the background by a shell that has both ignored.

The default tests run in one process per core. What ``-m`` or a path selects runs in this process: the heavier tests use
all cores themselves or share one SLURM, and a few tests end sooner than other processes start.
"""

import signal

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("same")

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Set what xdist reads next; an option that was given on the command line decides."""
    if hasattr(config, "workerinput") or config.pluginmanager.has_plugin("_cov"):
        return  # in such a process, which would start more of them; or pytest-cov has to know beforehand, by -n
    selected = config.args != config.getini("testpaths") or config.option.markexpr not in config.getini("addopts")
    if not selected and config.getoption("numprocesses", 0) is None:
        config.option.numprocesses, config.option.maxprocesses, config.option.dist = "auto", 8, "worksteal"
