"""Whether all ranks come to MPI at all. To be asked before MPI is imported: its start does not return before all are there."""

from __future__ import annotations

import os
import subprocess

from gala_mpi import host

SECONDS = 120.0  # from a rank's start until all have started; many that read Python's files at a time are slow
TEXT = "not all ranks have started within {:g} s: look for one that is stopped (state T) or waits for a file system (D)"


class Watch:
    """A process beside this one that ends it, with a word, unless `over` comes first.

    No thread can do that: while MPI starts, Python's other threads stand still. The ranks of a host speak one after the other,
    so that it is one line where the launcher ends all with the first.
    """

    def __init__(self):
        seconds = SECONDS + host.rank_on_this_host()
        speak = f"echo 'gala_mpi: {TEXT.format(SECONDS)}' >&2; kill -KILL {os.getpid()}"
        script = f"timeout {seconds:g} cat; [ $? != 124 ] || {{ {speak}; }}"
        self._process = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE)

    def over(self) -> None:
        """All have started. So it is where this process ends: then its pipe is closed as well."""
        self._process.communicate()
