"""Read other ranks' mailboxes: HeaderReader reads a header, CopyReader copies a message, DirectReader reads one in place.

None of them waits: each step is taken as soon as it can be (mailbox.py has the protocol).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.mailbox import BEGUN, LATEST, Mailbox


def message_reader(mailbox: Mailbox, peer: int) -> CopyReader | DirectReader:
    """Return a reader of `peer`'s messages: in place if MPI exposes the peer's memory and no checksum needs a copy."""
    view = None if mailbox.checksum else mailbox.shared_view(peer)
    return CopyReader(mailbox, peer) if view is None else DirectReader(mailbox, peer, *view)


def while_reachable(step: Callable[..., bool | None]) -> Callable[..., bool | None]:
    """Decorate a reader's step so that, once MPI has failed to reach the peer, it is skipped: a second try might hang.

    Raises:
        MPI.Exception: the peer cannot be reached, and the mailbox is not to survive that.
    """

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
    """Reads a peer's header again and again without waiting.

    Attributes:
        header: as it last arrived, int64 [16], with receipts behind it. Each word is consistent by itself, not the header as a
            whole.
        unreachable: whether MPI has failed to reach the peer.
    """

    def __init__(self, mailbox: Mailbox, peer: int):
        self.mailbox, self.peer = mailbox, peer
        self.unreachable = False
        self.header = np.zeros(mailbox.header_bytes // 8, np.int64)
        self._incoming = np.zeros_like(self.header)
        self._request: MPI.Request | None = None
        mailbox.readers.append(self)

    @property
    def idle(self) -> bool:
        """Whether no get is pending."""
        return self._request is None

    @while_reachable
    def start(self) -> None:
        """Begin to read the header, unless a get is pending."""
        if self.idle:
            self._request = self.mailbox.get_header(self.peer, self._incoming)

    @while_reachable
    def advance(self) -> bool:
        """Take the header if it has arrived since `start`, and return whether it has."""
        if self._request is None or not self._request.Test():
            return False
        self._request = None
        self.mailbox.arrived(self.peer)
        self.header[:] = self._incoming
        return True

    @while_reachable
    def drain(self) -> None:
        """Wait for the pending get, so that the window can be freed."""
        while self._request is not None and not self._request.Test():
            self.mailbox.progress()
        self._request = None


class MessageReader:
    """Reads the messages of one in-peer without waiting: start, advance until it returns true, take, use, still_whole.

    Args:
        mailbox: the transport.
        peer: whose messages.

    Attributes:
        header: the peer's as it is known so far, int64 [16]. Each word is consistent by itself.
        idle: whether no get is pending.
        ready: whether a message can be taken.
        version: that of the message that is ready or was taken last.
        torn: how many messages were discarded because their slot was rewritten meanwhile.
        corrupt: how many messages were discarded because their checksum was wrong.
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
        """Ask for the newest message above `newer_than`, or for version `exactly`, unless a get is pending.

        While a message is ready, only the header is read again.
        """
        raise NotImplementedError

    def advance(self) -> bool:
        """Take every step that needs no waiting, and return whether a message is ready."""
        raise NotImplementedError

    def take(self) -> tuple[np.ndarray, int]:
        """Return the message that is ready (float32 [length]) and its version. Then the next one may be asked for."""
        raise NotImplementedError

    def still_whole(self) -> bool:
        """Return, after a message has been used, whether it was whole until then. If not, it must be taken again."""
        raise NotImplementedError

    def drain(self) -> None:
        """See mailbox.Reader."""
        raise NotImplementedError

    def _has_requested(self) -> bool:
        """Return whether the peer, by its header, has the message asked for, and set `version` to that message's."""
        latest = int(self.header[LATEST])
        requested = latest if self._exactly is None else self._exactly
        if not self._newer_than < requested <= latest:
            return False
        self.version = requested
        return True

    def _whole(self) -> bool:
        """Return whether, by the second header, the slot still held this version when all of it had been read."""
        return bool(self.header[BEGUN + self.version % self.mailbox.reach.slots] == self.version)


class CopyReader(MessageReader):
    """Copies messages into memory of this rank: header → payload → header. They are verified before they are ready."""

    def __init__(self, mailbox: Mailbox, peer: int):
        super().__init__(mailbox, peer)
        self.unreachable = False
        self._header_reader = HeaderReader(mailbox, peer)
        self._slot = np.zeros(mailbox.words, np.float32)
        self._payload_request: MPI.Request | None = None
        self._verifying = False  # whether the pending header is the second one, after the payload

    @property
    def header(self) -> np.ndarray:
        return self._header_reader.header

    @property
    def idle(self) -> bool:
        return self._header_reader.idle and self._payload_request is None

    def start(self, newer_than: int, exactly: int | None = None) -> None:
        if self.idle:
            self._newer_than, self._exactly = newer_than, exactly
            self._header_reader.start()

    @while_reachable
    def advance(self) -> bool:
        while True:
            if self._payload_request is not None:
                if not self._payload_request.Test():
                    return False
                self._payload_request = None
                self.mailbox.arrived(self.peer)
                self._verifying = True
                self._header_reader.start()
            if not self._header_reader.advance():
                return self.ready
            if self._verifying:
                self._verifying = False
                self.ready = self._whole()
                self.torn += not self.ready
                if self.ready and not self._matches():
                    self.ready = False
                    self.corrupt += 1
                    return False  # read again after the next start(), not over and over in this call
            if not self.ready and self._has_requested():
                self._payload_request = self.mailbox.get_payload(self.peer, self.version, self._slot)

    def _matches(self) -> bool:
        """Return whether the payload matches the checksum that came with it."""
        return not self.mailbox.checksum or zlib.crc32(self._slot[:-1].data) == self._slot.view(np.uint32)[-1]

    def take(self) -> tuple[np.ndarray, int]:
        self.ready = False
        self._newer_than = self.version  # a header that is still pending must not bring it again
        return self._slot[: self.mailbox.length], self.version

    def still_whole(self) -> bool:
        return True

    @while_reachable
    def drain(self) -> None:
        while self._payload_request is not None and not self._payload_request.Test():
            self.mailbox.progress()
        self._payload_request = None


class DirectReader(MessageReader):
    """Reads messages in place, in the peer's own memory. They are verified after they have been used (`still_whole`).

    Args:
        header, slots: the peer's (see Mailbox.shared_view).
    """

    idle = True

    def __init__(self, mailbox: Mailbox, peer: int, header: np.ndarray, slots: list[np.ndarray]):
        super().__init__(mailbox, peer)
        self.header, self._slots = header, slots
        self._asked = False

    def start(self, newer_than: int, exactly: int | None = None) -> None:
        self._newer_than, self._exactly, self._asked = newer_than, exactly, True

    def advance(self) -> bool:
        self.ready = self._asked and self._has_requested()
        return self.ready

    def take(self) -> tuple[np.ndarray, int]:
        if self._exactly is None:
            self.version = int(self.header[LATEST])  # it may be newer than the one that was ready
        self.mailbox.sync()
        self.ready = self._asked = False
        return self._slots[self.version % len(self._slots)][: self.mailbox.length], self.version

    def still_whole(self) -> bool:
        self.mailbox.sync()
        whole = self._whole()
        self.torn += not whole
        return whole

    def drain(self) -> None:
        self.header, self._slots = np.zeros(0, np.int64), []  # the views of memory that is freed next are given up
