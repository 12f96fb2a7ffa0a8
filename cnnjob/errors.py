"""What can go wrong for a user, and the exit code that says so.

    CnnjobError            one message on stderr, no traceback                          1
    ├── JobError           a job file, an option or an argument asks for something
    │                      that cannot be                                               2
    ├── DataError          a source, a dataset, a checkpoint or a run folder is
    │                      missing, damaged, or not the one that was meant              3
    ├── SchedulerError     SLURM refused, or is not there                               4
    ├── BusyError          another process is writing this run                          5
    └── TrainingError      the job itself failed: the loss is no longer a number        1

A message says where, what is wrong, what was found, and what to do:
``<where>: <what is wrong>, <what was found>; <what to do>``. Anything that is not a
``CnnjobError`` is a bug and keeps its traceback.

Two more exit codes belong to no error: 75, stopped on purpose before the end (run the
same command again), and 130, interrupted.
"""

EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130


class CnnjobError(Exception):
    """A mistake or a misfortune that the user can act on."""

    exit_code = 1


class JobError(CnnjobError):
    """A job file, an option or an argument asks for something that cannot be."""

    exit_code = 2


class DataError(CnnjobError):
    """A source, dataset, checkpoint or run folder is missing, damaged or not the one meant."""

    exit_code = 3


class SchedulerError(CnnjobError):
    """SLURM refused, or is not there.

    Attributes:
        silent: whether SLURM did not answer, so that it may have done what it was asked, or may do it in a while.
    """

    exit_code = 4

    def __init__(self, message: str, *, silent: bool = False) -> None:
        """Make one with its message."""
        super().__init__(message)
        self.silent = silent


class BusyError(CnnjobError):
    """Another process is writing this run."""

    exit_code = 5


class TrainingError(CnnjobError):
    """The job itself failed: its loss is no longer a number."""
