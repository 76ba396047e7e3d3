"""Which of the ranks that I read still live.

Every rank counts its progresses in its header. One whose count stands still past a deadline is lost, until it moves again. The
deadline is each rank's own: longer where longer silences have been seen (a full core, a slow disk at a checkpoint).
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from gala_mpi.mpi.mailbox import ALIVE, LATEST, Mailbox
from gala_mpi.mpi.readers import HeaderReader

SECONDS_BETWEEN_LOOKS = 0.5
PATIENCE = 3.0  # times the longest silence so far


class Liveness:
    """Look at headers now and then, without waiting.

    Args:
        mailbox: the transport.
        seconds: of silence before a rank is lost; more for one that has been silent for a third of it or longer.

    Attributes:
        lost: rank → the last version that was seen of it.
    """

    def __init__(self, mailbox: Mailbox, seconds: float):
        self._mailbox, self._seconds = mailbox, seconds
        self._watched: dict[int, _Watched] = {}
        self._looked = time.monotonic()
        self.lost: dict[int, int] = {}

    def follow(self, ranks: Iterable[int]) -> None:
        """Watch these too."""
        for rank in ranks:
            if rank not in self._watched:
                self._watched[rank] = _Watched(self._mailbox, rank)

    def update(self) -> bool:
        """Return whether somebody has been lost, or has come back, since the last look. To be called often."""
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return False
        # Time in which I was away myself (stopped, or writing a checkpoint) says nothing about others.
        passed, self._looked = min(now - self._looked, 2 * SECONDS_BETWEEN_LOOKS), now
        before = set(self.lost)
        for rank, watched in self._watched.items():
            watched.update(passed)
            if watched.silence == 0:
                self.lost.pop(rank, None)
            elif watched.silence > max(self._seconds, PATIENCE * watched.longest):
                self.lost.setdefault(rank, watched.version)
        return before != set(self.lost)


class _Watched:
    """A rank that is watched: how long its count has stood still, and the longest that it did so before. Seconds."""

    def __init__(self, mailbox: Mailbox, rank: int):
        self._headers = HeaderReader(mailbox, rank)
        self._count = 0
        self.silence = self.longest = 0.0

    @property
    def version(self) -> int:
        return int(self._headers.header[LATEST])

    def update(self, passed: float) -> None:
        self._headers.advance()
        self._headers.start()
        self.silence += passed
        count = int(self._headers.header[ALIVE])
        if count != self._count:
            self._count = count
            self.longest, self.silence = max(self.longest, self.silence - passed), 0.0
