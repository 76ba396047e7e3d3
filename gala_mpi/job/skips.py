"""What is said of updates from which nothing can be learnt, and when there are too many of them."""

from __future__ import annotations

import sys
import time

from gala_mpi.errors import JobError

SECONDS_BETWEEN_LINES = 30.0


class Skips:
    """Names what was not finite: at once, and then now and then.

    Args:
        rank, host: whose updates.
        allowed: how many in a row may be skipped.
    """

    def __init__(self, rank: int, host: str, allowed: int):
        self._who, self._allowed = f"rank {rank} on {host}", allowed
        self._in_a_row = self._unsaid = 0
        self._said = -SECONDS_BETWEEN_LINES

    def note(self, update: int, why: str) -> None:
        """Take note of an update, and of why it was skipped (empty: it was not).

        Raises:
            JobError: too many in a row have been skipped.
        """
        self._in_a_row = self._in_a_row + 1 if why else 0
        if not why:
            return
        if self._in_a_row > self._allowed:
            seen = f"{self._in_a_row} updates in a row up to {update} are skipped"
            raise JobError(f"{seen}, --max-skipped {self._allowed} are allowed: {why}")
        self._unsaid += 1
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            more = f" and {self._unsaid - 1} before it" if self._unsaid > 1 else ""
            print(f"gala_mpi: {self._who} skips update {update}{more}: {why}", file=sys.stderr, flush=True)
            self._said, self._unsaid = time.monotonic(), 0

    def conclude(self, skipped: int, updates: int) -> None:
        """Say how many updates have been skipped since the run began, if some of this start have not been named."""
        if self._unsaid:
            seen = f"{self._who} has skipped {skipped} of {updates} updates in all"
            print(f"gala_mpi: {seen}; it has learnt nothing from them", file=sys.stderr, flush=True)
