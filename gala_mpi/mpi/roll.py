"""Who is waited for: a rank that waits for others for long says whom it waits for, and where they were last seen.

MPI does not tell who has not come to a collective call. So ranks call the roll: waits for all ranks come in the same order on
all of them, and each counts its own. A rank that waits for a second says so to ranks 0 and 1, by its count. Whoever has not
said so has not come, and rank 0 names them; rank 1 does where rank 0 is one of them. As long as nobody waits for long, nothing
is sent.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from gala_mpi import pulse
from gala_mpi.errors import JobError

SECONDS_BETWEEN_WARNINGS = 30.0
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_FOR_ITS_OWN_WORDS = 20.0  # in which a rank that hangs says so itself, with its stacks (job/hangs.py)
SECONDS_WITHOUT_A_PAUSE = 2e-3  # a pause of a few µs costs 60, and milliseconds on a busy core
STARTS_ARE_SLOW = 4.0  # times longer between warnings, while ranks read Python's files and make environments
NAMED = 8  # ranks in one line, at most
TAG = 1201


@functools.cache
def _key() -> int:
    """Return the key by which communicators keep their rolls; made once MPI has started."""
    return MPI.Comm.Create_keyval()


class Roll:
    """What is known of the ranks of a communicator. There is one for each: `Roll.of(comm)`.

    Attributes:
        hosts: of the ranks, as far as known.
        names: of the ranks, where they have others than "rank 0", "rank 1", ...
        updates: returns the last update known of each rank; None: nothing is known.
        limit: seconds without an update after which a rank that is waited for ends the job; None: never.
    """

    def __init__(self, comm: MPI.Intracomm):
        self._comm = comm
        self.hosts: Sequence[str] = []
        self.names: Sequence[str] = []
        self.updates: Callable[[], npt.NDArray[np.float64]] | None = None
        self.limit: float | None = None
        self._count = 0  # of this rank's waits for all
        self._here = np.zeros(comm.size, np.int64)  # the last wait in which each rank said it was
        self._sends: list[tuple[MPI.Request, np.ndarray]] = []
        self._said = self._heard = 0  # how often this rank has said that it is here, and heard that another is

    @staticmethod
    def of(comm: MPI.Intracomm) -> Roll:
        """Return the roll of `comm`, which keeps it."""
        roll = comm.Get_attr(_key())
        if not isinstance(roll, Roll):
            roll = Roll(comm)
            comm.Set_attr(_key(), roll)
        return roll

    def wait(self, request: MPI.Request) -> None:
        """Wait for a request that all ranks have part in. Collective.

        Ranks that wait inside MPI take the cores from those that are still on their way. These do so for a moment, in which
        most waits are over, and then pause between tests.
        """
        watch, pause, began = self.watch(), 0.0, time.perf_counter()
        while not request.Test():
            if time.perf_counter() - began < SECONDS_WITHOUT_A_PAUSE:
                os.sched_yield()
                continue
            watch()
            time.sleep(pause)
            pause = min(pause + 1e-5, 1e-3)

    def watch(self, patience: float = 1.0) -> Watch:
        """Begin a wait for all ranks; the watch is to be called again and again until it is over. Collective.

        Args:
            patience: how many times longer than usual it says nothing.
        """
        self._count += 1
        if self._comm.rank < 2:
            self._hear()
        return Watch(self, self._absent, self.seen, patience)

    def watch_peers(self, peers: list[int], seen: Callable[[int], float | None] | None = None) -> Watch:
        """As `watch`, for a wait for some ranks, which are known. Not collective.

        Args:
            seen: rank → its last update known; None: what is known to all.
        """
        return Watch(self, lambda: peers, seen or self.seen)

    def close(self) -> None:
        """Hear the last words, so that the communicator can be freed: MPICH refuses one to which messages come. Collective."""
        others = self._comm.allreduce(self._said) - self._said
        while self._comm.rank < 2 and self._heard < others:
            self._hear()
        MPI.Request.Waitall([request for request, _ in self._sends])

    def seen(self, rank: int) -> float | None:
        """Return the last update known of a rank."""
        return None if self.updates is None else self.updates()[rank]

    def name(self, rank: int) -> str:
        """Return "rank 3 on n017"."""
        return (self.names[rank] if self.names else f"rank {rank}") + (f" on {self.hosts[rank]}" if self.hosts else "")

    def say(self, text: str) -> None:
        """Print a line about this rank."""
        print(f"gala_mpi: {self.name(self._comm.rank)} {text}", file=sys.stderr, flush=True)

    def _absent(self) -> list[int]:
        """Say that this rank is here, hear who else is, and return who is not, if this rank is to name them."""
        me = self._comm.rank
        if self._here[me] < self._count:
            self._here[me] = self._count
            self._said += 1
            self._sends = [(request, count) for request, count in self._sends if not request.Test()]
            for rank in {0, 1} & {*range(self._comm.size)} - {me}:
                count = np.array([self._count])
                self._sends.append((self._comm.Isend([count, MPI.INT64_T], rank, TAG), count))
        if me > 1:
            return []
        self._hear()
        absent = np.flatnonzero(self._here < self._count).tolist()
        return absent if me == 0 or 0 in absent else []

    def _hear(self) -> None:
        """Take what has been said."""
        status, count = MPI.Status(), np.zeros(1, np.int64)
        while self._comm.Iprobe(MPI.ANY_SOURCE, TAG, status):
            self._comm.Recv([count, MPI.INT64_T], status.Get_source(), TAG)
            self._here[status.Get_source()] = count[0]
            self._heard += 1


class Watch:
    """One wait. Call it again and again: it says, every SECONDS_BETWEEN_WARNINGS, whom the wait is for.

    Args:
        roll: that of all ranks.
        absent: returns who is waited for, as far as this rank is to name them.
        seen: rank → its last update known, or None.
        patience: how many times longer it says nothing.
    """

    def __init__(
        self,
        roll: Roll,
        absent: Callable[[], list[int]],
        seen: Callable[[int], float | None],
        patience: float = 1.0,
    ):
        self._roll, self._absent, self._seen, self._patience = roll, absent, seen, patience
        self._began = self._warned = self._looked = time.monotonic()
        self._stands: dict[int, tuple[float, float]] = {}  # rank → its last update known, and since when

    def __call__(self) -> None:
        """Note that this rank waits; now and then, look for whom.

        Raises:
            JobError: a rank that is waited for has made no update for longer than the roll's limit.
        """
        pulse.wait()
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        absent = self._absent()
        self._check(absent, now)
        if absent and now - self._warned >= SECONDS_BETWEEN_WARNINGS * self._patience:
            self._warned = now
            more = f" and {len(absent) - NAMED} others" if len(absent) > NAMED else ""
            names = ", ".join(self._where(rank) for rank in absent[:NAMED]) + more
            self._roll.say(f"at update {pulse.update} has waited {now - self._began:.0f} s for {names}")

    def check(self) -> None:
        """Look, now and then, whether one of these ranks has been silent for too long, though this rank waits for nobody.

        Raises:
            JobError: as above.
        """
        now = time.monotonic()
        if now - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._check(self._absent(), now)

    def _where(self, rank: int) -> str:
        update = self._seen(rank)
        return self._roll.name(rank) + ("" if update is None else f", seen at update {update:.0f}")

    def _check(self, absent: list[int], now: float) -> None:
        if self._roll.limit is None:
            return
        for rank in absent:
            update = self._seen(rank)
            before, since = self._stands.get(rank, (-1, self._began))
            if update is not None and update != before:
                since = self._began if before == -1 else now
                self._stands[rank] = update, since
            if update is not None and now - since > self._roll.limit + SECONDS_FOR_ITS_OWN_WORDS:
                raise JobError(f"{self._where(rank)}, has made no update for {(now - since) / 60:.1f} minutes (--hang-minutes)")
