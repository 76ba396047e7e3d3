"""The RMA transport: every rank publishes versions of a vector in its own window, where other ranks read them.

Nothing here waits for another rank. Publishing writes local memory only. Reading (readers.py) uses request-based gets that
are tested, never waited for (MPI has no nonblocking flush, and a put over TCP stands still until its target enters MPI), or
plain loads where MPI exposes another rank's memory.

A window holds a header of 64-bit words and S slots. Version v lies in slot v mod S. The writer works like a sequence lock
(Lamport, "Concurrent reading and writing", 1977):

    BEGUN[slot] = v     sync     slot = vector     sync     LATEST = v     sync

A reader takes the header, then the slot of LATEST = v, then the header again, each complete before the next begins.
If BEGUN[slot] is then still v, the writer had not begun to rewrite the slot when the payload had been read, and LATEST = v
implies that version v was finished before: the message is whole. Otherwise it is discarded and counted as torn.

The header's words are aligned and 8 bytes wide; like every sequence lock, this one relies on such a word being read and
written in one piece. docs/transport.md has the argument, docs/transport.pml its model.

Where MPI, the network or memory is not trusted, there is a checksum mode: the last word of a slot is then a CRC-32 of the
others, and the reader discards and counts (`corrupt`) what does not match. The protocol does not need it.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.progress import TESTS_OF_A_BURST, Progress
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.window import Window

# Words of the header.
LATEST = 0  # the newest version whose payload is complete; 0: none yet
MIXED = 1  # the newest update whose messages this rank has finished reading (the receipt of lock-step readers)
FINISHED = 2  # once this rank publishes no more: 1 + its last version (one word, so that both are seen together)
STOP_AT = 3  # the update at which all stop; 0: none
SAVE_AT = 4  # the newest update at which all save a checkpoint; 0: none
BEGUN = 5  # one word per slot: the version whose writing has begun there
ALIVE = 15  # how often this rank has made progress: grows as long as the rank is alive
HEADER_BYTES = 128
TAKEN = 16  # behind the header, where there are receipts: one word per rank, the last of its messages that this one has taken
ALIGNMENT = 64


@dataclass(frozen=True)
class Reach:
    """How ranks reach each other's memory, and the constants that follow from it.

    Attributes:
        slots: S. With one publication every U seconds, a message that takes less than (S - 1) U to read is never torn.
        tests_per_progress: how many tests `Mailbox.progress` makes. A network moves a get in pieces, a few per test:
            7 MB over TCP take 2 bursts of 10 tests with libfabric, 21 with UCX, but 3 of 100.
    """

    slots: int
    tests_per_progress: int


DIRECT = Reach(slots=2, tests_per_progress=0)  # shared memory: a get is a copy, made at once, without the target's help
# A network: a get takes time and, over TCP, the help of its target.
REMOTE = Reach(slots=4, tests_per_progress=TESTS_OF_A_BURST)


def window_bytes(length: int, reach: Reach) -> int:
    """Return the size of a rank's window in bytes, for messages of `length` float32."""
    return HEADER_BYTES + reach.slots * _stride(length)


def _stride(length: int) -> int:
    """Return the bytes from one slot to the next: those of `length` float32, rounded up to the alignment."""
    return -(-4 * length // ALIGNMENT) * ALIGNMENT


class Reader(Protocol):
    """A reader of another rank's window."""

    def drain(self) -> bool | None:
        """Wait for pending gets, and touch other ranks' memory no more: the window is about to be freed."""


def probe(comm: MPI.Intracomm, progress: Progress) -> Reach:
    """Return DIRECT if every rank's get from the next rank is complete at once, else REMOTE. Collective.

    One neighbour is enough: with more than one host, some rank has the next one on another host.
    """
    window, next_rank = Window(comm, ALIGNMENT), (comm.rank + 1) % comm.size
    window.meet([next_rank], progress)
    direct = np.array([next_rank in window.near])
    progress.wait(comm.Iallreduce(MPI.IN_PLACE, [direct, MPI.C_BOOL], MPI.LAND), Roll.of(comm).watch())
    window.free()
    return DIRECT if direct else REMOTE


class Mailbox:
    """One rank's window and its access to those of the others. Collective to make and to close.

    Args:
        comm: the ranks that read each other.
        length: how many float32 a message holds.
        checksum: whether messages carry a CRC-32, which their readers verify. The same on all ranks.
        survive: whether a rank that MPI cannot reach is read no more. Otherwise that is an error.
        publishes: whether this rank does; else its window has no slots.
        slots: S; None: as is best where the newest message wins. The same on all ranks.
        receipts: how many words TAKEN there are, 0 or the number of ranks. The same on all ranks.

    Attributes:
        reach: how ranks reach each other's memory. The same on all ranks.
        words: float32 of a slot: the payload and its checksum.
        header_bytes: of a header with its receipts.
        header: this rank's own, int64 [16], with receipts behind it.
        slots: this rank's own, float32 [words] each.
        progress_gap: the longest time between two calls of `progress`, in seconds, since it was last reset.
        readers: all readers that were made; some may have pending gets when the mailbox is closed.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        length: int,
        checksum: bool = False,
        survive: bool = False,
        publishes: bool = True,
        slots: int | None = None,
        receipts: int = 0,
    ):
        self.comm, self.length, self.checksum, self.survive = comm, length, checksum, survive
        self._progress = Progress()
        reach = probe(comm, self._progress)
        self.reach = reach if slots is None else dataclasses.replace(reach, slots=slots)
        self.words = length + checksum
        self.stride = _stride(self.words)
        self.header_bytes = HEADER_BYTES + _stride(2 * receipts)
        self._size = self.header_bytes + self.reach.slots * self.stride
        self._window = Window(comm, self._size if publishes else self.header_bytes)
        self.header, self.slots = self._parts(self._window.memory)
        self._last_progress = time.perf_counter()
        self.progress_gap = 0.0
        self.readers: list[Reader] = []

    def _parts(self, memory: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return a window's header (int64 [16], and receipts) and its slots (float32 [words])."""
        slots = memory[self.header_bytes :].reshape(-1, self.stride)[:, : 4 * self.words].view(np.float32)
        return memory[: self.header_bytes].view(np.int64), list(slots)

    def shared_view(self, peer: int) -> tuple[np.ndarray, list[np.ndarray]] | None:
        """Return views of the header and slots of a peer that publishes, to be read in place; None where MPI does not expose
        them.

        See Window.shared_view.
        """
        memory = self._window.shared_view(peer, self._size)
        return None if memory is None else self._parts(memory)

    def meet(self, peers: Iterable[int]) -> None:
        """Read once from each of `peers`, which will be read later, while all ranks are here (see Window.meet). Collective."""
        self._window.meet(peers, self._progress)
        self._progress.wait(self.comm.Ibarrier(), Roll.of(self.comm).watch())

    def publish(self, vector: np.ndarray, version: int) -> None:
        """Make `vector` (float32 [length]) readable as `version`. Only local memory is written."""
        self.begin_write(version)[:] = vector
        self.end_write(version)

    def begin_write(self, version: int) -> np.ndarray:
        """Return the slot where `version` is to be written, float32 [length]. Its previous version becomes unreadable."""
        slot = version % self.reach.slots
        self.header[BEGUN + slot] = version
        self.sync()
        return self.slots[slot][: self.length]

    def end_write(self, version: int) -> None:
        """Make `version` readable, now that its slot has been written."""
        slot = self.slots[version % self.reach.slots]
        if self.checksum:
            slot.view(np.uint32)[-1] = zlib.crc32(slot[:-1].data)
        self.sync()
        self.header[LATEST] = version
        self.sync()

    def post(self, word: int, value: int) -> None:
        """Set one word of this rank's header."""
        self.header[word] = value
        self.sync()

    def sync(self) -> None:
        """Order this rank's earlier loads and stores before its later ones."""
        self._window.sync()

    def get_header(self, rank: int, into: np.ndarray) -> MPI.Request:
        """Begin to read a rank's header into `into` (int64 [16], or with receipts behind it), and return the request."""
        return self._window.get(rank, 0, into, MPI.INT64_T)

    def get_payload(self, rank: int, version: int, into: np.ndarray) -> MPI.Request:
        """Begin to read the slot of `version` into `into` (float32, [words] or shorter), and return the request."""
        return self._window.get(rank, self.header_bytes + version % self.reach.slots * self.stride, into, MPI.FLOAT)

    def arrived(self, rank: int) -> None:
        """Account for a complete get from `rank` (see Window.arrived). To be called after every get."""
        self._window.arrived(rank)

    def progress(self) -> None:
        """Make progress: let MPI serve other ranks and move pending messages. To be called often."""
        now = time.perf_counter()
        self.progress_gap = max(self.progress_gap, now - self._last_progress)
        self._progress.test(self.reach.tests_per_progress)
        self.header[ALIVE] += 1
        self._last_progress = time.perf_counter()

    def close(self, *meanwhile: Callable[[], None]) -> None:
        """Serve the other ranks until all are here, then free the window. Collective.

        Args:
            meanwhile: called again and again while waiting.
        """
        self._progress.wait(self.comm.Ibarrier(), *meanwhile, Roll.of(self.comm).watch())
        while self.readers:
            self.readers.pop().drain()
        self.header, self.slots = np.zeros(0, np.int64), []  # the views of memory that is freed next are given up
        self._window.free()
        self._progress.close()
