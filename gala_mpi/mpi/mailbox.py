"""The RMA transport: every rank publishes versions of a vector in its own window, where others read them.

Nothing here waits for another rank. Publishing writes local memory only. Reading (readers.py) uses request-based gets that
are tested, never waited for (MPI has no nonblocking flush, and a put over TCP stands still until its target enters MPI), or
plain loads where MPI shows another's memory.

A window holds a header of 64-bit words and S slots. Version v lies in slot v mod S. The writer works like a sequence lock
(Lamport, "Concurrent reading and writing", 1977):

    BEGUN[slot] = v     sync     slot = vector     sync     LATEST = v     sync

A reader takes the header, then the slot of LATEST = v, then the header again, each complete before the next begins.
If BEGUN[slot] is then still v, the writer had not begun to rewrite the slot when the payload had been read, and LATEST = v
said that it was finished before: the message is whole. Otherwise it is thrown away and counted as torn.

The header's words are aligned and 8 bytes wide; like every sequence lock this one takes for granted that such a word is
read and written in one piece. docs/transport.md has the argument, docs/transport.pml its model.

For those who doubt their MPI, network or memory there is a checksum mode: the last word of a slot is then a CRC-32 of the
others, and the reader throws away and counts (`corrupt`) what does not match. The protocol does not need it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.progress import TESTS_OF_A_BURST, Progress
from gala_mpi.mpi.window import Window

# Words of the header.
LATEST = 0  # the newest version whose payload is complete; 0: none yet
MIXED = 1  # the newest update after which this rank has read all that it wants of it (lock-step readers' receipt)
FINISHED = 2  # once this rank publishes nothing more: 1 + its last version (one word, so that both are seen together)
STOP_AT = 3  # the update at which all stop; 0: none
SAVE_AT = 4  # the newest update at which all save a checkpoint; 0: none
BEGUN = 5  # one word a slot: the version whose writing has begun there
ALIVE = 15  # how often this rank has made progress: it grows as long as the rank lives
HEADER_BYTES = 128
ALIGNMENT = 64


@dataclass(frozen=True)
class Reach:
    """How ranks reach each other's memory, and what follows from it.

    Attributes:
        slots: S. With one publication every U seconds, a message that takes less than (S - 1) U to read is never torn.
        tests_per_progress: a network moves a get in pieces, a few a test: 7 MB over TCP take 2 bursts of 10 tests with
            libfabric, 21 with UCX, but 3 of 100.
    """

    slots: int
    tests_per_progress: int


DIRECT = Reach(slots=2, tests_per_progress=0)  # shared memory: a get is a copy, made at once; nobody needs help
REMOTE = Reach(slots=4, tests_per_progress=TESTS_OF_A_BURST)  # a network: a get takes time, and over TCP the help of its target


def window_bytes(length: int, reach: Reach) -> int:
    """Return how large a rank's window is, for messages of `length` float32."""
    return HEADER_BYTES + reach.slots * _stride(length)


def _stride(length: int) -> int:
    return -(-4 * length // ALIGNMENT) * ALIGNMENT


class Reader(Protocol):
    """Whoever reads others' windows through a mailbox."""

    def drain(self) -> bool | None:
        """Wait for what is on its way, and look at others' memory no more: the window is about to be freed."""


def probe(comm: MPI.Intracomm, progress: Progress) -> Reach:
    """Return DIRECT if every rank's get from the next rank is complete at once, else REMOTE. Collective.

    Where there is more than one host, some rank has the next one on another.
    """
    window, after = Window(comm, ALIGNMENT), (comm.rank + 1) % comm.size
    window.meet([after], progress)
    direct = np.array([after in window.near])
    progress.wait(comm.Iallreduce(MPI.IN_PLACE, [direct, MPI.C_BOOL], MPI.LAND))
    window.free()
    return DIRECT if direct else REMOTE


class Mailbox:
    """One rank's window and its view of the others'. Collective to make and to close.

    Args:
        comm: the ranks that read each other.
        length: how many float32 a message holds.
        checksum: whether messages carry a CRC-32, which their readers verify. The same on all ranks.
        survive: whether a rank that MPI cannot reach is read no more. Otherwise that is an error.
    """

    def __init__(self, comm: MPI.Intracomm, length: int, checksum: bool = False, survive: bool = False):
        self.comm, self.length, self.checksum, self.survive = comm, length, checksum, survive
        self._progress = Progress()
        self.reach = probe(comm, self._progress)
        self.words = length + checksum  # of a slot: the payload and its checksum
        self.stride = _stride(self.words)
        self._window = Window(comm, window_bytes(self.words, self.reach))
        self.header, self.slots = self._parts(self._window.memory)
        self._last_progress = time.perf_counter()
        self.progress_gap = 0.0
        self.readers: list[Reader] = []  # what may still be on its way when all are done

    def _parts(self, memory: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return a window's header (int64 [16]) and its slots (float32 [words])."""
        slots = memory[HEADER_BYTES:].reshape(-1, self.stride)[:, : 4 * self.words].view(np.float32)
        return memory[:HEADER_BYTES].view(np.int64), list(slots)

    def of(self, peer: int) -> tuple[np.ndarray, list[np.ndarray]] | None:
        """Return a peer's header and slots to be read where they lie, or None where MPI does not show them (see Window.of)."""
        memory = self._window.of(peer)
        return None if memory is None else self._parts(memory)

    def meet(self, peers: Iterable[int]) -> None:
        """Read from each of `peers`, whom I shall read later, while all are here. Collective."""
        self._window.meet(peers, self._progress)
        self._progress.wait(self.comm.Ibarrier())

    def publish(self, vector: np.ndarray, version: int) -> None:
        """Make `vector` readable as `version`. Local memory traffic alone."""
        self.begin_write(version)[:] = vector
        self.end_write(version)

    def begin_write(self, version: int) -> np.ndarray:
        """Return the slot where `version` is to be written, float32 [length]. What it held before is gone."""
        slot = version % self.reach.slots
        self.header[BEGUN + slot] = version
        self.sync()
        return self.slots[slot][: self.length]

    def end_write(self, version: int) -> None:
        """Announce that the slot of `version` has been written: it is readable from now on."""
        slot = self.slots[version % self.reach.slots]
        if self.checksum:
            slot.view(np.uint32)[-1] = zlib.crc32(slot[:-1].data)
        self.sync()
        self.header[LATEST] = version
        self.sync()

    def post(self, word: int, value: int) -> None:
        """Set one word of my header."""
        self.header[word] = value
        self.sync()

    def sync(self) -> None:
        """Order what I have stored and read before what follows."""
        self._window.sync()

    def get_header(self, rank: int, into: np.ndarray) -> MPI.Request:
        """Begin to read a header (int64 [16])."""
        return self._window.get(rank, 0, into, MPI.INT64_T)

    def get_payload(self, rank: int, version: int, into: np.ndarray) -> MPI.Request:
        """Begin to read the slot of `version` (float32 [words])."""
        return self._window.get(rank, HEADER_BYTES + version % self.reach.slots * self.stride, into, MPI.FLOAT)

    def arrived(self, rank: int) -> None:
        """Take note that a get from `rank` is complete."""
        self._window.arrived(rank)

    def progress(self) -> None:
        """Let MPI serve others and move what is on its way."""
        now = time.perf_counter()
        self.progress_gap = max(self.progress_gap, now - self._last_progress)
        self._progress.test(self.reach.tests_per_progress)
        self.header[ALIVE] += 1
        self._last_progress = time.perf_counter()

    def close(self, *meanwhile: Callable[[], None]) -> None:
        """Serve the others until all have come here, calling `meanwhile` as often as may be, then free the window."""
        self._progress.wait(self.comm.Ibarrier(), *meanwhile)
        while self.readers:
            self.readers.pop().drain()
        self.header, self.slots = np.zeros(0, np.int64), []  # the others view memory that is about to go
        self._window.free()
        self._progress.close()
