"""Detect ranks that never start. To be used before MPI starts, which does not return before all ranks have started."""

from __future__ import annotations

import os
import subprocess

from gala_mpi import host

SECONDS = 120.0  # from a rank's start until all have started; many ranks that read Python's files at the same time are slow
TEXT = "not all ranks have started within {:g} s: look for one that is stopped (state T) or waits for a file system (D)"


class Watchdog:
    """A process that prints a message and kills this one after SECONDS, unless `stop` is called first.

    A thread cannot do that, because Python's other threads stand still while MPI starts. The watchdogs of a host's ranks expire
    one after the other, so that only one prints where the launcher ends all ranks with the first.
    """

    def __init__(self):
        seconds = SECONDS + host.rank_on_this_host()
        end = f"echo 'gala_mpi: {TEXT.format(SECONDS)}' >&2; kill -KILL {os.getpid()}"
        script = f"timeout {seconds:g} cat; [ $? != 124 ] || {{ {end}; }}"
        self._process = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE)

    def stop(self) -> None:
        """End the watchdog, once all ranks have started. It also ends with this process, which closes its pipe."""
        self._process.communicate()
