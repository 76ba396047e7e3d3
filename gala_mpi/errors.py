"""Exit statuses, and the errors that a user can correct: they are reported in one line, without a traceback."""

# Exit statuses, the same on all ranks. Signals that end a run have their own (job/signals.py).
FINISHED = 0  # all steps are done
FAILED = 1
REFUSED = 2  # bad input
RESUME = 75  # EX_TEMPFAIL: stopped early with a complete checkpoint, to be started again with --resume


class SettingError(ValueError):
    """Bad input. Its text names the setting, its value and the values allowed.

    Every rank ends with status 2 (`World.decide`).
    """


class Refusal(SettingError):
    """Bad input of which all ranks have heard: each of them raises this (`World.agree_on`), and none is left waiting."""


class RunError(SettingError):
    """There is no run that can be read where one is expected; the message is one line."""


class JobError(Exception):
    """An error after which no rank can continue. The job ends with status 1 and this text, in one line."""


class DiskError(JobError, OSError):
    """A file of the run cannot be written, for example because the disk is full. Its text names the file."""
