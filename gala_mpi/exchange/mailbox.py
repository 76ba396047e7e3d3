"""The RMA transport: every rank publishes versions of a vector in its own window; others read them with tested gets.

Nothing here waits for another rank. Publishing writes local memory only. Reading uses request-based gets that are tested,
never waited for: MPI has no nonblocking flush, and a put over TCP stands still until its target enters MPI.

A window holds a header of 64-bit words and S slots. Version v lies in slot v mod S. The writer works like a sequence lock
(Lamport, "Concurrent reading and writing", 1977):

    BEGUN[slot] = v     sync     slot = vector     sync     LATEST = v     sync

A reader takes the header, then the slot of LATEST = v, then the header again, each get complete before the next begins.
If BEGUN[slot] is then still v, the writer had not begun to rewrite the slot when the payload had been read, and LATEST = v
said that it was finished before: the message is whole. Otherwise it is thrown away and counted as torn.

The header's words are aligned and 8 bytes wide; like every sequence lock this one takes for granted that such a word is
read and written in one piece. docs/transport.md has the argument, docs/transport.pml its model.

For those who doubt their MPI, network or memory there is a checksum mode: the last word of a slot is then a CRC-32 of the
others, and the reader throws away and counts (`corrupt`) what does not match. The protocol does not need it.
"""

from __future__ import annotations

import functools
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from gala_mpi.exchange.window import TESTS_OF_A_BURST, Progress, Window

# Words of the header.
LATEST = 0  # the newest version whose payload is complete; 0: none yet
MIXED = 1  # the newest update after which this rank has read all that it wants of it (lock-step readers' receipt)
FINISHED = 2  # once this rank publishes nothing more: 1 + its last version (one word, so that both are seen together)
STOP_AT = 3  # the update at which all stop; 0: none
SAVE_AT = 4  # the newest update at which all save a checkpoint; 0: none
BEGUN = 5  # one word a slot: the version whose writing has begun there
ALIVE = 15  # how often this rank has poked: it grows as long as the rank lives
HEADER_BYTES = 128
ALIGNMENT = 64


@dataclass(frozen=True)
class Reach:
    """How ranks reach each other's memory, and what follows from it.

    Attributes:
        slots: S. With one publication every U seconds, a message that takes less than (S - 1) U to read is never torn.
        tests_per_poke: a network moves a get in pieces, a few a test: 7 MB over TCP take 2 bursts of 10 tests with
            libfabric, 21 with UCX, but 3 of 100.
    """

    slots: int
    tests_per_poke: int


DIRECT = Reach(slots=2, tests_per_poke=0)  # shared memory: a get is a copy, made at once; nobody needs help
REMOTE = Reach(slots=4, tests_per_poke=TESTS_OF_A_BURST)  # a network: a get takes time, and over TCP the help of its target


def window_bytes(length: int, reach: Reach) -> int:
    """How large a rank's window is, for messages of `length` float32."""
    return HEADER_BYTES + reach.slots * _stride(length)


def _stride(length: int) -> int:
    return -(-4 * length // ALIGNMENT) * ALIGNMENT


def probe(comm: MPI.Intracomm, progress: Progress) -> Reach:
    """DIRECT if every rank's get from the next rank is complete at once, else REMOTE. Collective.

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
        memory = self._window.memory
        self.header = memory[:HEADER_BYTES].view(np.int64)
        self.slots = list(memory[HEADER_BYTES:].reshape(-1, self.stride)[:, : 4 * self.words].view(np.float32))
        self._last_poke = time.perf_counter()
        self.poke_gap = 0.0
        self.readers: list[Glance | Pull] = []  # what may still be on its way when all are done

    def meet(self, peers: Iterable[int]) -> None:
        """Read from each of `peers`, whom I shall read later, while all are here. Collective."""
        self._window.meet(peers, self._progress)
        self._progress.wait(self.comm.Ibarrier())

    def publish(self, vector: np.ndarray, version: int) -> None:
        """Make `vector` readable as `version`. Local memory traffic alone."""
        self.begin(version)[:] = vector
        self.finish(version)

    def begin(self, version: int) -> np.ndarray:
        """The slot where `version` is to be written, float32 [length]. What it held before is gone."""
        slot = version % self.reach.slots
        self.header[BEGUN + slot] = version
        self._window.sync()
        return self.slots[slot][: self.length]

    def finish(self, version: int) -> None:
        """The slot of `version` has been written: it is readable from now on."""
        slot = self.slots[version % self.reach.slots]
        if self.checksum:
            slot.view(np.uint32)[-1] = zlib.crc32(slot[:-1])
        self._window.sync()
        self.header[LATEST] = version
        self._window.sync()

    def post(self, word: int, value: int) -> None:
        """Set one word of my header."""
        self.header[word] = value
        self._window.sync()

    def get_header(self, rank: int, into: np.ndarray) -> MPI.Request:
        """Begin to read a header (int64 [16])."""
        return self._window.get(rank, 0, into, MPI.INT64_T)

    def get_payload(self, rank: int, version: int, into: np.ndarray) -> MPI.Request:
        """Begin to read the slot of `version` (float32 [words])."""
        return self._window.get(rank, HEADER_BYTES + version % self.reach.slots * self.stride, into, MPI.FLOAT)

    def arrived(self, rank: int) -> None:
        """A get from `rank` is complete."""
        self._window.arrived(rank)

    def poke(self) -> None:
        """Let MPI serve others and move what is on its way."""
        now = time.perf_counter()
        self.poke_gap = max(self.poke_gap, now - self._last_poke)
        self._progress.test(self.reach.tests_per_poke)
        self.header[ALIVE] += 1
        self._last_poke = time.perf_counter()

    def close(self, *meanwhile: Callable[[], None]) -> None:
        """Serve the others until all have come here, calling `meanwhile` as often as may be, then free the window."""
        self._progress.wait(self.comm.Ibarrier(), *meanwhile)
        while self.readers:
            self.readers.pop().drain()
        self.header, self.slots = None, None  # views of memory that is about to go
        self._window.free()
        self._progress.close()


def while_reachable(step: Callable[..., bool | None]) -> Callable[..., bool | None]:
    """A step of a reader. Once MPI has failed to reach the peer, it is touched no more: a second try might hang."""

    @functools.wraps(step)
    def guarded(reader: Glance | Pull, *arguments, **options) -> bool | None:
        if reader.unreachable:
            return False
        try:
            return step(reader, *arguments, **options)
        except MPI.Exception:
            if not reader.mailbox.survive:
                raise
            reader.unreachable = True
            return False

    return guarded


class Glance:
    """A peer's header, read again and again without waiting: `header` (int64 [16]) as it last arrived, each word by itself."""

    def __init__(self, mailbox: Mailbox, peer: int):
        self.mailbox, self.peer = mailbox, peer
        self.unreachable = False
        self.header = np.zeros(HEADER_BYTES // 8, np.int64)
        self._incoming = np.zeros_like(self.header)
        self._request: MPI.Request | None = None
        mailbox.readers.append(self)

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return self._request is None

    @while_reachable
    def start(self) -> None:
        """Begin to read the header, unless something is on its way."""
        if self.idle:
            self._request = self.mailbox.get_header(self.peer, self._incoming)

    @while_reachable
    def advance(self) -> bool:
        """Whether a header has arrived since `start`."""
        if self.idle or not self._request.Test():
            return False
        self._request = None
        self.mailbox.arrived(self.peer)
        self.header[:] = self._incoming
        return True

    @while_reachable
    def drain(self) -> None:
        """Wait for what is on its way, so that the window can be freed."""
        while not self.idle and not self._request.Test():
            self.mailbox.poke()
        self._request = None


class Pull:
    """Messages of one in-peer on their way to me: header → payload → header, without waiting.

    Args:
        mailbox: the transport.
        peer: whose messages.

    Attributes:
        payload: float32 [length]; whole once `ready`.
        version: of `payload`.
        torn: how many payloads were thrown away because their slot was rewritten meanwhile.
        corrupt: how many were thrown away because their checksum was wrong.
    """

    def __init__(self, mailbox: Mailbox, peer: int):
        self.mailbox, self.peer = mailbox, peer
        self._slot = np.zeros(mailbox.words, np.float32)
        self.payload = self._slot[: mailbox.length]
        self.version = 0
        self.ready = self.unreachable = False
        self.torn = self.corrupt = 0
        self._glance = Glance(mailbox, peer)
        self._payload_request: MPI.Request | None = None
        self._judging = False  # the header on its way is the one after the payload
        self._newer_than = 0
        self._exactly: int | None = None
        mailbox.readers.append(self)

    @property
    def header(self) -> np.ndarray:
        """The peer's header as last seen, int64 [16]."""
        return self._glance.header

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return self._glance.idle and self._payload_request is None

    def start(self, newer_than: int, exactly: int | None = None) -> None:
        """Ask for the newest message above `newer_than`, or for version `exactly`, unless something is on its way.

        While a message is ready, only the header is read anew.
        """
        if self.idle:
            self._newer_than, self._exactly = newer_than, exactly
            self._glance.start()

    @while_reachable
    def advance(self) -> bool:
        """Take every step that needs no waiting. True once a whole message is there."""
        while True:
            if self._payload_request is not None:
                if not self._payload_request.Test():
                    return False
                self._payload_request = None
                self.mailbox.arrived(self.peer)
                self._judging = True
                self._glance.start()
            if not self._glance.advance():
                return self.ready
            if self._judging:
                self._judging = False
                self.ready = self._whole()
                self.torn += not self.ready
                if self.ready and not self._matches():
                    self.ready = False
                    self.corrupt += 1
                    return False  # asked for anew by the next start(), not here and now again and again
            if not self.ready:
                self._read_payload()

    def _whole(self) -> bool:
        """The second look: whether the slot still was the version's when all of it had been read."""
        return bool(self.header[BEGUN + self.version % self.mailbox.reach.slots] == self.version)

    def _matches(self) -> bool:
        """Whether the payload has the checksum that came with it."""
        return not self.mailbox.checksum or zlib.crc32(self.payload) == self._slot.view(np.uint32)[-1]

    def _read_payload(self) -> None:
        """The header is here: begin to read the version wanted, if the peer has it."""
        latest = int(self.header[LATEST])
        wanted = latest if self._exactly is None else self._exactly
        if self._newer_than < wanted <= latest:
            self.version = wanted
            self._payload_request = self.mailbox.get_payload(self.peer, wanted, self._slot)

    def take(self) -> tuple[np.ndarray, int]:
        """The message that is ready, and its version; then the next may be asked for."""
        self.ready = False
        self._newer_than = self.version  # the header that may be on its way does not bring it again
        return self.payload, self.version

    @while_reachable
    def drain(self) -> None:
        """Wait for the payload on its way, so that the window can be freed."""
        while self._payload_request is not None and not self._payload_request.Test():
            self.mailbox.poke()
        self._payload_request = None
