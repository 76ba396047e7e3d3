"""Starting and ending MPI: who I am, how many threads are mine, one clear error, no rank left hanging."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import mpi4py

# The emulators and torch run threads, but only the main thread calls MPI.
mpi4py.rc.thread_level = "funneled"
from mpi4py import MPI  # noqa: E402

from gala_mpi import memory, stop  # noqa: E402
from gala_mpi.errors import DiskError, SettingError  # noqa: E402

T = TypeVar("T")


class World:
    """The ranks of this job. A context manager: an exception on one rank ends the job on all of them.

    Attributes:
        comm: the communicator of all agents.
        node: the communicator of the agents on this host.
        threads: this rank's share of the cores that it may use, 1 or more.
        hosts, threads_of_ranks: the host and threads of every rank.
    """

    def __init__(self):
        memory.map_large_blocks()
        self.comm = MPI.COMM_WORLD  # the only place that names it
        self.rank, self.size = self.comm.rank, self.comm.size
        self.host = MPI.Get_processor_name()
        self.node = self.comm.Split_type(MPI.COMM_TYPE_SHARED, key=self.rank)
        self.threads = self._share_of_cores()
        self.hosts: list[str] = self.comm.allgather(self.host)
        self.threads_of_ranks: list[int] = self.comm.allgather(self.threads)

    @property
    def root(self) -> bool:
        return self.rank == 0

    @property
    def library(self) -> str:
        """The MPI library, for example "MPICH 5.0.2"."""
        name, version = MPI.get_vendor()
        return f"{name} {'.'.join(map(str, version))}"

    def decide(self, choose: Callable[[], T]) -> T:
        """What rank 0's `choose()` returns, on every rank. Bad input there ends every rank with status 2 and one line."""
        chosen, status = None, None
        if self.root:
            try:
                chosen = choose()
            except SettingError as error:
                print(f"gala_mpi: {error}", file=sys.stderr, flush=True)
                status = stop.REFUSED
            except SystemExit as end:  # tyro has printed its help or its complaint
                status = end.code or 0
        chosen, status = self.comm.bcast((chosen, status))
        if status is not None:
            sys.exit(status)
        return chosen

    def largest(self, value: T) -> T:
        """The largest `value` of any rank. Collective."""
        return self.comm.allreduce(value, MPI.MAX)

    def sum(self, value: int) -> int:
        """The sum over all ranks. Collective."""
        return self.comm.allreduce(value)

    def all(self, holds: bool) -> bool:
        """Whether it holds on every rank. Collective."""
        return self.comm.allreduce(holds, MPI.LAND)

    def wait(self) -> None:
        """A barrier that leaves the cores to the others, unlike MPI's own. Collective."""
        everybody = self.comm.Ibarrier()
        while not everybody.Test():
            time.sleep(0.01)

    def part(self, rank_zero_alone: bool) -> MPI.Intracomm | None:
        """A communicator of rank 0 alone or of all ranks; None for ranks outside it. Collective."""
        inside = self.root or not rank_zero_alone
        comm = self.comm.Split(0 if inside else MPI.UNDEFINED, self.rank)
        return comm if inside else None

    def _share_of_cores(self) -> int:
        """Cores in my affinity mask, each split over the ranks of this host that may use it, within the cgroup's quota."""
        masks = self.node.allgather(os.sched_getaffinity(0))
        share = sum(1 / sum(core in mask for mask in masks) for core in masks[self.node.rank])
        return max(1, int(min(share, _cgroup_cores() / self.node.size) + 1e-9))

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None or issubclass(kind, SystemExit):
            self.node.Free()
            return
        report = str(error) if kind is DiskError else "".join(traceback.format_exception(kind, error, trace))
        sys.stdout.flush()
        print(f"gala_mpi: rank {self.rank} on {self.host} failed; the job ends.\n{report}", file=sys.stderr, flush=True)
        self.comm.Abort(stop.FAILED)
        os._exit(stop.FAILED)  # MPICH returns from its abort, and Python would print the error once more


def _cgroup_cores() -> float:
    """Cores that this process's cgroup may use at a time (cgroup v2's cpu.max); infinite without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return float("inf")
