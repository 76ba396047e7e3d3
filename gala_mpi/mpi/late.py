"""When MPI starts: where `World` says so, and not when mpi4py is imported.

Programs that are imported need no MPI. multiprocessing imports the main program anew in each process that it starts by spawn or
forkserver, a worker of an environment for example; MPI would take that for another start of the rank.
"""

from __future__ import annotations

import sys

import mpi4py


def start_late() -> None:
    """Let MPI start in `World` and end with Python. To be called before `mpi4py.MPI` is imported; later it does nothing."""
    mpi4py.rc.thread_level = "funneled"
    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = True


def finalise() -> None:
    """End MPI, if it runs, for who leaves Python without its exit handlers. Collective."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
