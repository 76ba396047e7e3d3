"""The errors that a user can mend: one line says what is wrong, and no traceback comes with it."""


class SettingError(ValueError):
    """Bad input: names the quantity, the value seen and the values allowed. Every rank ends with status 2 (`World.decide`)."""


class DiskError(OSError):
    """A file of the run cannot be written: the disk is full, say. It ends the job with status 1 and names the file."""
