"""Start and end MPI: ranks and hosts, each rank's share of the cores, one line for an error, no rank left hanging."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar, cast

import mpi4py

# The emulators and torch run threads, but only the main thread calls MPI.
mpi4py.rc.thread_level = "funneled"
from mpi4py import MPI

from gala_mpi import errors, host, pulse
from gala_mpi.errors import JobError, SettingError
from gala_mpi.host import HostView
from gala_mpi.mpi.roll import STARTS_ARE_SLOW, Roll

T = TypeVar("T")
SECONDS_BEFORE_ABORT = 1.0  # MPICH's launcher drops what a rank prints just before its abort: 2 of 60 tracebacks, measured
SECONDS_TO_ABORT = 5.0
SECONDS_BETWEEN_TESTS = 0.01  # of whether all ranks have arrived
# Environment variables that choose how messages travel.
TRANSPORT = ("MPIR_CVAR_CH4_NETMOD", "MPIR_CVAR_NOLOCAL", "FI_PROVIDER", "UCX_TLS", "UCX_NET_DEVICES")
TRANSPORT += ("OMPI_MCA_pml", "OMPI_MCA_osc", "OMPI_MCA_btl", "I_MPI_FABRICS")


def rendezvous(comm: MPI.Intracomm) -> None:
    """Wait for all ranks without occupying a core. Collective.

    Ranks that wait inside MPI's own barrier take the cores from those that are still on their way: while 31 ranks waited on
    two cores, rank 0 took 10 s for 0.7 s of work.
    """
    everybody, watch = comm.Ibarrier(), Roll.of(comm).watch(STARTS_ARE_SLOW)
    while not everybody.Test():
        watch()
        time.sleep(SECONDS_BETWEEN_TESTS)


class World:
    """The ranks of this job. A context manager: an exception on one rank ends the job on all of them.

    Attributes:
        comm: the communicator of all agents.
        node: the communicator of the agents on this host.
        view: what this rank sees of its host.
        host_views: the views of all ranks, in their order.
    """

    def __init__(self):
        if host.imports_main_again():
            raise RuntimeError(
                "a worker process imports the main program, which starts to train in it: "
                "what the program does is to stand below `if __name__ == '__main__':`"
            )
        if not MPI.Is_initialized():
            MPI.Init_thread(MPI.THREAD_FUNNELED)
        host.tune_malloc()
        self.comm = MPI.COMM_WORLD  # the only place that names it
        rendezvous(self.comm)
        self.rank, self.size = self.comm.rank, self.comm.size
        self.host = MPI.Get_processor_name()
        self.node = self.comm.Split_type(MPI.COMM_TYPE_SHARED, key=self.rank)
        mask = os.sched_getaffinity(0)
        self.view = host.view(self.host, self.node.allgather(mask), mask)
        self.host_views: list[HostView] = self.comm.allgather(self.view)
        Roll.of(self.comm).hosts = self.hosts
        pulse.end = self.abort

    @property
    def threads(self) -> int:
        """This rank's share of the cores that it may use, 1 or more."""
        return self.view.threads

    @property
    def hosts(self) -> list[str]:
        """The name of every rank's host, in the order of the ranks."""
        return [view.host for view in self.host_views]

    @property
    def root(self) -> bool:
        return self.rank == 0

    @property
    def library(self) -> str:
        """The MPI library, for example "MPICH 5.0.2"."""
        name, version = MPI.get_vendor()
        return f"{name} {'.'.join(map(str, version))}"

    @property
    def description(self) -> str:
        """The MPI library, how it was built and the environment variables that choose its transport."""
        built = next((line.split(":", 1)[1] for line in MPI.Get_library_version().splitlines() if "Device:" in line), "")
        variables = [f"{name}={os.environ[name]}" for name in TRANSPORT if name in os.environ]
        return ", ".join(filter(None, [self.library, built.strip(), *variables]))

    @property
    def threads_allowed(self) -> bool:
        """Whether other threads may run beside the one that calls MPI."""
        return MPI.Query_thread() >= MPI.THREAD_FUNNELED

    def decide(self, choose: Callable[[], T]) -> T:
        """Call `choose()` on rank 0 and return its result on every rank. Collective.

        Bad input (a SettingError) ends every rank with status 2, after one line from rank 0.
        """
        chosen, status = None, None
        if self.root:
            try:
                chosen = choose()
            except SettingError as error:
                print(f"gala_mpi: {error}", file=sys.stderr, flush=True)
                status = errors.REFUSED
            except SystemExit as end:  # tyro has printed its help or its complaint
                status = end.code or 0
        rendezvous(self.comm)
        chosen, status = self.comm.bcast((chosen, status))
        if status is not None:
            sys.exit(status)
        return chosen

    def largest(self, value: T) -> T:
        """Return the largest `value` of any rank. Collective."""
        rendezvous(self.comm)
        return self.comm.allreduce(value, MPI.MAX)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order, on rank 0; an empty list elsewhere. Collective."""
        rendezvous(self.comm)
        return self.comm.gather(value) or []

    def sum(self, value: int) -> int:
        """Return the sum of `value` over all ranks. Collective."""
        rendezvous(self.comm)
        return self.comm.allreduce(value)

    def all(self, holds: bool) -> bool:
        """Return whether `holds` is true on every rank. Collective."""
        rendezvous(self.comm)
        return self.comm.allreduce(holds, MPI.LAND)

    def wait(self) -> None:
        """Wait until all ranks are here. Collective."""
        rendezvous(self.comm)

    def leave(self, status: int) -> NoReturn:
        """End this rank alone, without finalising MPI: once a rank has died, MPI's collective calls never return."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def abort(self, status: int) -> None:
        """End the job at once, while the main thread hangs: to be called in another one. Does not return.

        Only the main thread may call MPI, but it does not come back; and without MPI's abort MPICH's launcher mostly ends with
        9, for the ranks that it kills, instead of `status`.
        """
        threading.Thread(target=self.comm.Abort, args=[status], daemon=True).start()
        time.sleep(SECONDS_TO_ABORT)
        os._exit(status)

    def part(self, ranks: int) -> MPI.Intracomm | None:
        """Return a communicator of the first `ranks` ranks; None on the others. Collective."""
        inside = self.rank < ranks
        comm = self.comm.Split(0 if inside else MPI.UNDEFINED, self.rank)
        return cast(MPI.Intracomm, comm) if inside else None

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None or issubclass(kind, SystemExit):
            Roll.of(self.comm).close()
            self.node.Free()
            return
        prefix, status = f"gala_mpi: rank {self.rank} on {self.host}", errors.FAILED
        if issubclass(kind, KeyboardInterrupt):  # of all ranks, mostly; training handles signals
            report, status = f"{prefix} is interrupted; the job ends.", 128 + signal.SIGINT
        elif issubclass(kind, (JobError, SettingError)):  # an environment's module may be missing on one host alone
            report = f"{prefix}: {error}; the job ends."
        else:
            report = f"{prefix} failed; the job ends.\n{''.join(traceback.format_exception(kind, error, trace))}"
        sys.stdout.flush()
        print(report, file=sys.stderr, flush=True)
        time.sleep(SECONDS_BEFORE_ABORT)
        self.comm.Abort(status)
        os._exit(status)  # MPICH returns from its abort, and Python would print the error once more
