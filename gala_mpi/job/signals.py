"""Signals and the wall clock become one flag, and the flag becomes the exit status. The table of both is here.

A handler only sets the flag; the training loop asks for it once an update. `listen()` runs before torch and MPI are
imported: until then a signal's default action would kill the rank.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

from gala_mpi.errors import FINISHED, RESUME

# What each signal makes of a run, after its checkpoint. TERM and INT mean that nobody wants it to go on by itself.
STATUS = {signal.SIGUSR1: RESUME, signal.SIGINT: 128 + signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM}

SECONDS_BEFORE_JOB_END = 30.0  # for what comes after the last checkpoint: closing, the batch script's own end

_received: list[signal.Signals] = []


def listen() -> None:
    """From now on SIGUSR1, SIGINT and SIGTERM ask the run to save and stop."""
    for number in STATUS:
        signal.signal(number, lambda number, frame: _received.append(signal.Signals(number)))


def listen_no_more() -> None:
    """The run is over. At its end Python gives signals back their default, and a late SIGUSR1 would kill a finished rank."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Stop:
    """Whether this rank wants the run to end early, and why.

    Args:
        wall_minutes: from now on; None: no limit.
        propagation_delay: how many updates may pass between the wish and the stop.
    """

    def __init__(self, wall_minutes: float | None, propagation_delay: int):
        self._wall_minutes, self._propagation_delay = wall_minutes, propagation_delay
        self._began = time.monotonic()
        self._job_left = seconds_of_job(os.environ)
        self._updates = 0
        self._verdict = (FINISHED, "")

    @property
    def verdict(self) -> tuple[int, str]:
        """The exit status asked for so far, by a signal after the last update too, and by what; a higher one counts."""
        return _highest([self._verdict, *((STATUS[number], number.name) for number in _received)])

    def requested(self, save_seconds: float) -> bool:
        """Whether to stop; asked once an update.

        Args:
            save_seconds: the longest that a checkpoint has taken so far.
        """
        self._updates += 1
        passed = time.monotonic() - self._began
        reasons = [self.verdict]
        if self._wall_minutes is not None and passed >= 60 * self._wall_minutes:
            reasons.append((RESUME, f"{self._wall_minutes:g} minutes of wall time are over"))
        needed = SECONDS_BEFORE_JOB_END + 2 * save_seconds + self._propagation_delay * passed / self._updates
        if passed + needed >= self._job_left:
            reasons.append((RESUME, f"the job ends in {self._job_left - passed:.0f} s"))
        self._verdict = _highest(reasons)
        return self._verdict[0] != FINISHED


def seconds_of_job(environment: Mapping[str, str]) -> float:
    """How long the batch job may still run, by Slurm's own variable; infinite without one, or if it is a past job's."""
    end = environment.get("SLURM_JOB_END_TIME", "")
    left = float(end) - time.time() if end.isdigit() else 0.0
    return left if left > 0 else float("inf")


def _highest(reasons: list[tuple[int, str]]) -> tuple[int, str]:
    return max(reasons, key=lambda reason: reason[0])
