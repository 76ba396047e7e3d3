"""Stop early on signals and by the wall clock, and the exit status that follows from each.

A handler only records its signal; the training loop asks once per update. `listen()` is called before torch and MPI are
imported, because until then a signal's default action would kill the rank.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

from gala_mpi.errors import FINISHED, RESUME

# The exit status that each signal gives a run, after its checkpoint. TERM and INT mean that it is not to be restarted.
STATUS = {signal.SIGUSR1: RESUME, signal.SIGINT: 128 + signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM}

SECONDS_BEFORE_JOB_END = 30.0  # for what follows the last checkpoint: closing, and the end of the batch script

_received: list[signal.Signals] = []


def listen() -> None:
    """Handle SIGUSR1, SIGINT and SIGTERM from now on: they ask the run to save and stop."""
    for number in STATUS:
        signal.signal(number, lambda number, frame: _received.append(signal.Signals(number)))


def ignore_late_signals() -> None:
    """Ignore SIGUSR1 once the run is over: Python restores default actions as it exits, and a late one would kill the rank."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Stop:
    """Whether this rank wants the run to end early, and why.

    Args:
        wall_minutes: counted from now on; None: no limit.
        propagation_delay: how many updates may pass between a rank's wish and the stop of all.
    """

    def __init__(self, wall_minutes: float | None, propagation_delay: int):
        self._wall_minutes, self._propagation_delay = wall_minutes, propagation_delay
        self._began = time.monotonic()
        self._job_left = seconds_of_job(os.environ)
        self._updates = 0
        self._verdict = (FINISHED, "")

    @property
    def verdict(self) -> tuple[int, str]:
        """The highest exit status asked for so far, and the reason. Includes signals since the last update."""
        return _highest([self._verdict, *((STATUS[number], number.name) for number in _received)])

    def requested(self, save_seconds: float) -> bool:
        """Return whether this rank wants to stop. To be called once per update.

        Args:
            save_seconds: the longest time that a checkpoint has taken so far.
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
    """Return how long the batch job may still run, by Slurm's SLURM_JOB_END_TIME; infinite if it is not set or in the past."""
    end = environment.get("SLURM_JOB_END_TIME", "")
    left = float(end) - time.time() if end.isdigit() else 0.0
    return left if left > 0 else float("inf")


def _highest(reasons: list[tuple[int, str]]) -> tuple[int, str]:
    return max(reasons, key=lambda reason: reason[0])
