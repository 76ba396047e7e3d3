"""What a command does before it imports torch and MPI.

Importing the package does none of it: a library leaves its user's process alone.
"""

from __future__ import annotations

import os

from gala_mpi import host
from gala_mpi.job import signals

# One rank, few threads: `job.build` raises torch's own count to the rank's share of the cores. Everything else that would
# start a thread per core of the machine (OpenBLAS, OpenMP) is told not to before it is first imported.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# UCX over TCP moves a message in pieces of 8 KB unless it is told, which takes four times the tests and the time.
SEGMENTS = ("UCX_TCP_TX_SEG_SIZE", "UCX_TCP_RX_SEG_SIZE")


def set_environment() -> None:
    """Set what numerical libraries and MPI read when they are loaded. What the user has set stays."""
    for variable in THREADS:
        os.environ.setdefault(variable, "1")
    for variable in SEGMENTS:
        os.environ.setdefault(variable, "256K")


def prepare_to_train(status: int) -> None:
    """Set the environment, listen to signals (which until then would kill this rank), and refuse a host on which MPI would
    crash at its start, with this exit status."""
    set_environment()
    signals.listen()
    host.refuse_tiny_shared_memory(status)
