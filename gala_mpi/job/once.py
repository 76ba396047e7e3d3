"""One run at a time in a process, from its main thread, and not from a module that is only imported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gala_mpi.envs import modules
from gala_mpi.errors import SettingError

_trains = threading.Lock()


@contextmanager
def training() -> Iterator[None]:
    """Be the run of this process.

    Raises:
        SettingError: it is no place to train in.
    """
    if threading.current_thread() is not threading.main_thread():
        raise SettingError("gala_mpi.train in another thread: the main one is expected, which MPI and signals want")
    if module := modules.importing():
        raise SettingError(
            f"gala_mpi.train while {module} is imported, for a function in it: what the program does is to stand below "
            "`if __name__ == '__main__':`"
        )
    if not _trains.acquire(blocking=False):
        raise SettingError("gala_mpi.train while it trains: a call after its end is expected")
    try:
        yield
    finally:
        _trains.release()
