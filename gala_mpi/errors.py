"""The errors that a user can mend: one line says what is wrong, and no traceback comes with it; and exit statuses."""

# The same on all ranks; a signal that ends a run has its own (job/signals.py).
FINISHED = 0  # all steps are done
FAILED = 1
REFUSED = 2  # bad input
RESUME = 75  # EX_TEMPFAIL: stopped early with a complete checkpoint; start me again with --resume


class SettingError(ValueError):
    """Bad input: names the quantity, the value seen and the values allowed. Every rank ends with status 2 (`World.decide`)."""


class RunError(SettingError):
    """There is no run that can be read where one is expected; the message is one line."""


class JobError(Exception):
    """What no rank can go on after: the job ends with status 1 and this one line."""


class DiskError(JobError, OSError):
    """A file of the run cannot be written: the disk is full, say. Names the file."""
