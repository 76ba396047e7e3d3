"""Which of the ranks that this rank reads are still alive.

Every rank counts in its header how often it has made progress. A rank whose count stands still past a deadline is lost,
until the count moves again. Each rank has its own deadline, which is longer where longer silences have been seen (a full core,
a slow disk at a checkpoint).
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from gala_mpi.mpi.mailbox import ALIVE, LATEST, Mailbox
from gala_mpi.mpi.readers import HeaderReader

SECONDS_BETWEEN_CHECKS = 0.5
PATIENCE = 3.0  # times the longest silence so far


class Liveness:
    """Checks the headers of followed ranks now and then, without waiting.

    Args:
        mailbox: the transport.
        seconds: of silence before a rank is lost; more for one that has been silent for a third of it or longer before.

    Attributes:
        lost: rank → the last version seen of it.
    """

    def __init__(self, mailbox: Mailbox, seconds: float):
        self._mailbox, self._seconds = mailbox, seconds
        self._followed: dict[int, _Followed] = {}
        self._last_check = time.monotonic()
        self.lost: dict[int, int] = {}

    def follow(self, ranks: Iterable[int]) -> None:
        """Check these ranks from now on, too."""
        for rank in ranks:
            if rank not in self._followed:
                self._followed[rank] = _Followed(self._mailbox, rank)

    def update(self) -> bool:
        """Check the headers if it is time to, and return whether a rank has been lost or has come back. To be called often."""
        now = time.monotonic()
        if now - self._last_check < SECONDS_BETWEEN_CHECKS:
            return False
        # Time in which this rank did not check (it was stopped, or wrote a checkpoint) says nothing about the others.
        passed, self._last_check = min(now - self._last_check, 2 * SECONDS_BETWEEN_CHECKS), now
        before = set(self.lost)
        for rank, followed in self._followed.items():
            followed.update(passed)
            if followed.silence == 0:
                self.lost.pop(rank, None)
            elif followed.silence > max(self._seconds, PATIENCE * followed.longest):
                self.lost.setdefault(rank, followed.version)
        return before != set(self.lost)


class _Followed:
    """One rank: for how long its count has stood still, and the longest time that it did so before, in seconds."""

    def __init__(self, mailbox: Mailbox, rank: int):
        self._reader = HeaderReader(mailbox, rank)
        self._count = 0
        self.silence = self.longest = 0.0

    @property
    def version(self) -> int:
        return int(self._reader.header[LATEST])

    def update(self, passed: float) -> None:
        """Take the header that has arrived, if any, ask for the next, and add `passed` seconds to the silence."""
        self._reader.advance()
        self._reader.start()
        self.silence += passed
        count = int(self._reader.header[ALIVE])
        if count != self._count:
            self._count = count
            self.longest, self.silence = max(self.longest, self.silence - passed), 0.0
