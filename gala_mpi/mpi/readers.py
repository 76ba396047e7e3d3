"""Read others' mailboxes: HeaderReader a header, CopyReader a message into memory of one's own, DirectReader one where it lies.

None of them waits: each step is taken when it can be (mailbox.py has the protocol).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.mailbox import BEGUN, HEADER_BYTES, LATEST, Mailbox


def message_reader(mailbox: Mailbox, peer: int) -> CopyReader | DirectReader:
    """Return a reader of `peer`'s messages: where they lie, if MPI shows its memory and no checksum asks for a copy."""
    there = None if mailbox.checksum else mailbox.of(peer)
    return CopyReader(mailbox, peer) if there is None else DirectReader(mailbox, peer, *there)


def while_reachable(step: Callable[..., bool | None]) -> Callable[..., bool | None]:
    """Make a step of a reader touch the peer no more once MPI has failed to reach it: a second try might hang."""

    @functools.wraps(step)
    def guarded(reader: HeaderReader | CopyReader, *arguments, **options) -> bool | None:
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


class HeaderReader:
    """Read a peer's header again and again without waiting.

    Attributes:
        header: as it last arrived, int64 [16], each word by itself.
    """

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
        """Return whether a header has arrived since `start`."""
        if self._request is None or not self._request.Test():
            return False
        self._request = None
        self.mailbox.arrived(self.peer)
        self.header[:] = self._incoming
        return True

    @while_reachable
    def drain(self) -> None:
        """Wait for what is on its way, so that the window can be freed."""
        while self._request is not None and not self._request.Test():
            self.mailbox.progress()
        self._request = None


class MessageReader:
    """Read one in-peer's messages without waiting: start, advance until it is true, take, use, still_whole.

    Args:
        mailbox: the transport.
        peer: whose messages.

    Attributes:
        header: the peer's as far as it is known, int64 [16], each word by itself.
        idle: whether nothing is on its way.
        ready: whether one is there.
        version: of the one that is there or was taken last.
        torn: how many were thrown away because their slot was rewritten meanwhile.
        corrupt: how many were thrown away because their checksum was wrong.
    """

    header: np.ndarray
    idle: bool

    def __init__(self, mailbox: Mailbox, peer: int):
        self.mailbox, self.peer = mailbox, peer
        self.version = 0
        self.ready = False
        self.torn = self.corrupt = 0
        self._newer_than = 0
        self._exactly: int | None = None
        mailbox.readers.append(self)

    def start(self, newer_than: int, exactly: int | None = None) -> None:
        """Ask for the newest message above `newer_than`, or for version `exactly`, unless something is on its way.

        While a message is ready, only the header is read anew.
        """
        raise NotImplementedError

    def advance(self) -> bool:
        """Take every step that needs no waiting; return whether a message is there."""
        raise NotImplementedError

    def take(self) -> tuple[np.ndarray, int]:
        """Return the message that is ready (float32 [length]), and its version; then the next may be asked for."""
        raise NotImplementedError

    def still_whole(self) -> bool:
        """Return whether what was taken was whole until now, when it has been used. If not, take again."""
        raise NotImplementedError

    def drain(self) -> None:
        """See mailbox.Reader."""
        raise NotImplementedError

    def _has_wanted(self) -> bool:
        """By the header: whether the peer has what is wanted, and `version`, which that is."""
        latest = int(self.header[LATEST])
        wanted = latest if self._exactly is None else self._exactly
        if not self._newer_than < wanted <= latest:
            return False
        self.version = wanted
        return True

    def _whole(self) -> bool:
        """The second look: whether the slot still was the version's when all of it had been read."""
        return bool(self.header[BEGUN + self.version % self.mailbox.reach.slots] == self.version)


class CopyReader(MessageReader):
    """Copy messages into memory of one's own: header → payload → header. The second look comes with the message."""

    def __init__(self, mailbox: Mailbox, peer: int):
        super().__init__(mailbox, peer)
        self.unreachable = False
        self._headers = HeaderReader(mailbox, peer)
        self._slot = np.zeros(mailbox.words, np.float32)
        self._payload_request: MPI.Request | None = None
        self._judging = False  # the header on its way is the one after the payload

    @property
    def header(self) -> np.ndarray:
        return self._headers.header

    @property
    def idle(self) -> bool:
        return self._headers.idle and self._payload_request is None

    def start(self, newer_than: int, exactly: int | None = None) -> None:
        if self.idle:
            self._newer_than, self._exactly = newer_than, exactly
            self._headers.start()

    @while_reachable
    def advance(self) -> bool:
        while True:
            if self._payload_request is not None:
                if not self._payload_request.Test():
                    return False
                self._payload_request = None
                self.mailbox.arrived(self.peer)
                self._judging = True
                self._headers.start()
            if not self._headers.advance():
                return self.ready
            if self._judging:
                self._judging = False
                self.ready = self._whole()
                self.torn += not self.ready
                if self.ready and not self._matches():
                    self.ready = False
                    self.corrupt += 1
                    return False  # asked for anew by the next start(), not here and now again and again
            if not self.ready and self._has_wanted():
                self._payload_request = self.mailbox.get_payload(self.peer, self.version, self._slot)

    def _matches(self) -> bool:
        """Whether the payload has the checksum that came with it."""
        return not self.mailbox.checksum or zlib.crc32(self._slot[:-1].data) == self._slot.view(np.uint32)[-1]

    def take(self) -> tuple[np.ndarray, int]:
        self.ready = False
        self._newer_than = self.version  # the header that may be on its way does not bring it again
        return self._slot[: self.mailbox.length], self.version

    def still_whole(self) -> bool:
        return True

    @while_reachable
    def drain(self) -> None:
        while self._payload_request is not None and not self._payload_request.Test():
            self.mailbox.progress()
        self._payload_request = None


class DirectReader(MessageReader):
    """Read messages where they lie, in the peer's own memory. The second look comes when they have been used.

    Args:
        header, slots: the peer's (see Mailbox.of).
    """

    idle = True

    def __init__(self, mailbox: Mailbox, peer: int, header: np.ndarray, slots: list[np.ndarray]):
        super().__init__(mailbox, peer)
        self.header, self._slots = header, slots
        self._asked = False

    def start(self, newer_than: int, exactly: int | None = None) -> None:
        self._newer_than, self._exactly, self._asked = newer_than, exactly, True

    def advance(self) -> bool:
        self.ready = self._asked and self._has_wanted()
        return self.ready

    def take(self) -> tuple[np.ndarray, int]:
        if self._exactly is None:
            self.version = int(self.header[LATEST])  # newer than the one that was ready, perhaps
        self.mailbox.sync()
        self.ready = self._asked = False
        return self._slots[self.version % len(self._slots)][: self.mailbox.length], self.version

    def still_whole(self) -> bool:
        self.mailbox.sync()
        whole = self._whole()
        self.torn += not whole
        return whole

    def drain(self) -> None:
        self.header, self._slots = np.zeros(0, np.int64), []  # the others view memory that is about to go
