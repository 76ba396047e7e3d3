"""Start and end MPI: ranks and hosts, each rank's share of the cores, one line for an error, no rank left hanging."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

import mpi4py

# The emulators and torch run threads, but only the main thread calls MPI.
mpi4py.rc.thread_level = "funneled"
from mpi4py import MPI

from gala_mpi import errors, host, pulse
from gala_mpi.cli import require
from gala_mpi.errors import JobError, Refusal, SettingError
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


def require_alike(comm: MPI.Intracomm, mine: list[tuple[str, object]]) -> None:
    """Refuse arguments, or whatever has a name, that are not those of rank 0. Collective.

    Args:
        mine: names and what is to be the same.

    Raises:
        SettingError: names the first that differs, on all ranks.
    """
    rendezvous(comm)
    first, *others = comm.allgather(mine)
    for rank, theirs in enumerate(others, start=1):
        for (name, here), (other, there) in itertools.zip_longest(first, theirs, fillvalue=("parameter", "none")):
            require((name, here) == (other, there), f"{other} on rank {rank}:", there, f"{name} {here}, as on rank 0,")


def _name(agent: int, place: int) -> str:
    return f"actor {place} of rank {agent}" if place else f"rank {agent}"


class World:
    """The ranks of this job. A context manager: an exception on one rank ends the job on all of them.

    Every rank is an agent, until `split` gives some of them to others as their actors.

    Attributes:
        comm: the communicator of all agents; on actors that of all actors.
        rank: this one's among them. An agent's number, where this is one.
        size: how many they are.
        node: the communicator of those on this host.
        crew: the communicator of one agent and its actors, in this order; None: nobody has actors.
        name: of this rank, as in "rank 3" or "actor 1 of rank 3".
        cores: those that the ranks of this host may use.
        idle_cores: of each host, how many no rank has for its threads.
        view: what this rank sees of its host.
        host_views: the views of all of them, in their order.
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
        self._job = self.comm = MPI.COMM_WORLD  # the only place that names it
        roll = Roll.of(self.comm)  # of another run before, maybe
        roll.names, roll.limit = [], None
        rendezvous(self.comm)
        self.rank, self.size = self.comm.rank, self.comm.size
        self.host = MPI.Get_processor_name()
        self.node = self.comm.Split_type(MPI.COMM_TYPE_SHARED, key=self.rank)
        self.crew: MPI.Intracomm | None = None
        self.name = _name(self.rank, 0)
        mask = os.sched_getaffinity(0)
        masks = self.node.allgather(mask)
        self.view, self.cores = host.view(self.host, masks, mask), set.union(*masks)
        self.host_views: list[HostView] = self.comm.allgather(self.view)
        self.idle_cores = host.idle_cores(self.host_views)
        roll.hosts = self.hosts
        pulse.end = self.abort

    def split(self, actors: int) -> None:
        """Let every rank that can be divided by K + 1 be an agent, and the K ranks after it its actors. Collective.

        Agents are counted anew, and so are actors.

        Args:
            actors: K. The number of ranks must be a multiple of K + 1.
        """
        if not actors:
            return
        places = [divmod(rank, actors + 1) for rank in range(self.size)]
        number, place = places[self.rank]
        alike = [rank for rank in range(self.size) if (places[rank][1] > 0) == (place > 0)]
        ours = [rank for rank in range(self.size) if places[rank][0] == number]
        self.crew = cast(MPI.Intracomm, self._job.Split(number, place))
        self.comm = cast(MPI.Intracomm, self._job.Split(int(place > 0), self.rank))
        self.node.Free()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.node = self.comm.Split_type(MPI.COMM_TYPE_SHARED, key=self.rank)
        for comm, ranks in ((self._job, range(len(places))), (self.crew, ours), (self.comm, alike)):
            Roll.of(comm).hosts = [self.host_views[rank].host for rank in ranks]
            Roll.of(comm).names = [_name(*places[rank]) for rank in ranks]
        self.host_views = [self.host_views[rank] for rank in alike]
        self.name = _name(number, place)

    @property
    def acts(self) -> bool:
        """Whether this rank is an actor of another one."""
        return self.crew is not None and self.crew.rank > 0

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
        """Whether this is the first rank of the job, which speaks for all: an agent."""
        return self._job.rank == 0

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

        def choose_or_end() -> tuple[T | None, Any]:
            try:
                return choose(), None
            except SystemExit as end:  # tyro has printed its help or its complaint
                return None, end.code or 0

        try:
            chosen, status = self.agree_on(choose_or_end)
        except Refusal as refusal:
            if self.root:
                print(f"gala_mpi: {refusal}", file=sys.stderr, flush=True)
            sys.exit(errors.REFUSED)
        if status is not None:
            sys.exit(status)
        return cast(T, chosen)

    def agree_on(self, choose: Callable[[], T]) -> T:
        """Call `choose()` on rank 0 and return its result on every rank. Collective.

        Raises:
            Refusal: it has raised a SettingError, whose text this has; on all ranks.
        """
        chosen, refusal = None, None
        if self.root:
            try:
                chosen = choose()
            except SettingError as error:
                refusal = str(error)
        rendezvous(self.comm)
        chosen, refusal = self.comm.bcast((chosen, refusal))
        if refusal is not None:
            raise Refusal(refusal)
        return cast(T, chosen)

    def together(self, do: Callable[[], T]) -> T:
        """Call `do()` on every rank, and return what it has returned on this one. Collective.

        Raises:
            Refusal: it has raised a SettingError on some rank; the text is that of the first one, on all ranks.
        """
        done, refusal = None, None
        try:
            done = do()
        except SettingError as error:
            refusal = str(error)
        rendezvous(self.comm)
        refusals = [text for text in self.comm.allgather(refusal) if text is not None]
        if refusals:
            raise Refusal(refusals[0])
        return cast(T, done)

    def require_alike(self, mine: list[tuple[str, object]]) -> None:
        """Refuse what is not as on rank 0, see the function of this name. Collective. Raises Refusal."""
        try:
            require_alike(self.comm, mine)
        except SettingError as error:
            raise Refusal(str(error)) from None

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

    def of_agent(self, value: T) -> T:
        """Return the value of the agent that this rank is or plays for. Collective, of an agent and its actors."""
        if self.crew is None:
            return value
        rendezvous(self.crew)
        return self.crew.bcast(value)

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
        threading.Thread(target=self._job.Abort, args=[status], daemon=True).start()
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
        if kind is None or issubclass(kind, (SystemExit, Refusal)):
            for comm in (self.comm, self._job, self.crew) if self.crew is not None else (self._job,):
                Roll.of(comm).close()
            for comm in (self.comm, self.crew, self.node) if self.crew is not None else (self.node,):
                comm.Free()
            return
        prefix, status = f"gala_mpi: {self.name} on {self.host}", errors.FAILED
        if issubclass(kind, KeyboardInterrupt):  # of all ranks, mostly; training handles signals
            report, status = f"{prefix} is interrupted; the job ends.", 128 + signal.SIGINT
        elif issubclass(kind, (JobError, SettingError)):  # an environment's module may be missing on one host alone
            report = f"{prefix}: {error}; the job ends."
        else:
            report = f"{prefix} failed; the job ends.\n{''.join(traceback.format_exception(kind, error, trace))}"
        sys.stdout.flush()
        print(report, file=sys.stderr, flush=True)
        time.sleep(SECONDS_BEFORE_ABORT)
        self._job.Abort(status)
        os._exit(status)  # MPICH returns from its abort, and Python would print the error once more
