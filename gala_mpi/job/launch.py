"""Prepare the process before a command imports torch and MPI.

Importing the package does none of this: a library must not change its user's process. A program that trains (`gala_mpi.train`)
sets what libraries read when they are loaded, and listens to signals while it does.
"""

from __future__ import annotations

import gc
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from gala_mpi import host
from gala_mpi.job import signals
from gala_mpi.mpi import late

# Keep libraries from starting a thread per core of the machine on every rank (OpenBLAS, OpenMP); they read these variables
# when they are imported. `job.build` then raises torch's own count to the rank's share of the cores.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Threads of torch that wait for the next operation sleep. By default they spin for some milliseconds, and keep cores from
# emulators, other ranks and other programs: beside two busy programs on two cores a rank of two threads then trains at a
# tenth to a third of the speed. On idle cores there is no difference. (The first is read by GNU's library, which torch's
# wheels bring, the second by Intel's.)
WAITING = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
# UCX over TCP moves a message in pieces of 8 KB by default, which takes four times the tests and the time.
SEGMENTS = ("UCX_TCP_TX_SEG_SIZE", "UCX_TCP_RX_SEG_SIZE")
# UCX takes a signal to switch its debugging on: SIGHUP, unless told otherwise. It is to stop the run.
DEBUGGING = {"UCX_DEBUG_SIGNO": "0"}
SECONDS_FOR_THREADS = 5.0  # to end after the command has


def set_environment(command: bool = False) -> None:
    """Set what numerical libraries and MPI read when they are loaded, and let MPI start late. What the user has set stays.

    Args:
        command: whether this process is a command that ends by `run`. The garbage collector of any other program stays on.
    """
    set_variables()
    late.start_late()
    if command:
        gc.disable()


def set_variables() -> None:
    """Set the environment's variables that numerical libraries and MPI read when they are loaded."""
    for variable in THREADS:
        os.environ.setdefault(variable, "1")
    for variable, value in {**WAITING, **DEBUGGING}.items():
        os.environ.setdefault(variable, value)
    for variable in SEGMENTS:
        os.environ.setdefault(variable, "256K")


def prepare_to_train(status: int, command: bool = True) -> None:
    """Set the environment and handle signals, whose default action would kill this rank. A worker process that only imports the
    program handles none. The garbage collector of a command stays off until `run`.

    Args:
        status: the exit status where shared memory is so small that MPI would crash at its start.
        command: False: a program of the user's own imports what trains. Signals are its own until it does train, and MPI starts
            when mpi4py is imported, as in any program.

    Raises:
        SystemExit: shared memory is too small.
    """
    set_variables()
    again = host.imports_main_again()
    if command or again:
        late.start_late()
    if command and not again:
        gc.disable()
        signals.listen()
    if not again and "mpi4py.MPI" not in sys.modules:
        host.refuse_tiny_shared_memory(status)


def write_whole_lines() -> None:
    """Write each line that is printed at once, its end included, or lines of several ranks run together.

    Where PYTHONUNBUFFERED is set, as in many containers, Python would write the end by itself.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.write_through:
            stream.reconfigure(line_buffering=True, write_through=False)


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Call a command's function with the command line, and end the process with its status.

    Python itself waits for threads that are no daemons: one that an environment has left running would keep the process, and so
    the job, for ever. Here they have SECONDS_FOR_THREADS.

    What was imported until now is never garbage: torch alone brings 170,000 objects. The collector goes over them neither while
    they are imported nor later, nor when Python ends. A short command takes a third less time so.
    """
    gc.freeze()
    gc.enable()
    write_whole_lines()
    end = SystemExit(0)
    try:
        main(sys.argv[1:])
    except SystemExit as raised:
        end = raised
    until = time.monotonic() + SECONDS_FOR_THREADS
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread() and not thread.daemon]
    for thread in others:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        late.finalise()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    raise end
