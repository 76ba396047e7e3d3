"""Signals and the wall clock become one flag. A handler only sets it; the training loop asks for it once an update.

`listen()` runs before torch and MPI are imported: until then a signal's default action would kill the rank.
"""

from __future__ import annotations

import signal
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_received: list[str] = []


def listen() -> None:
    """From now on SIGINT, SIGTERM and SIGUSR1 ask the run to save and stop."""
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: _received.append(signal.Signals(number).name))


class Stop:
    """Whether this rank wants the run to end early, and why."""

    def __init__(self, wall_minutes: float | None = None):
        self._deadline = None if wall_minutes is None else time.monotonic() + 60 * wall_minutes
        self._wall_minutes = wall_minutes

    @property
    def reason(self) -> str | None:
        """What asked for the stop (a signal's name or the time limit), or None."""
        if _received:
            return _received[0]
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return f"{self._wall_minutes:g} minutes of wall time are over"
        return None

    def requested(self) -> bool:
        return self.reason is not None
