"""The errors that a user can mend: one line says what is wrong, and no traceback comes with it."""


class SettingError(ValueError):
    """Bad input: names the quantity, the value seen and the values allowed. Every rank ends with status 2 (`World.decide`)."""


class JobError(Exception):
    """What no rank can go on after: the job ends with status 1 and this one line."""


class DiskError(JobError, OSError):
    """A file of the run cannot be written: the disk is full, say. Names the file."""
