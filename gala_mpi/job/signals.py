"""Stop early on signals and by the wall clock, and the exit status that follows from each.

A handler only records its signal; the training loop asks once per update. The command calls `listen()` before torch and MPI are
imported, because until then a signal's default action would kill the rank. In a program that calls `gala_mpi.train` signals are
heeded while it trains, and are its own again afterwards.

A rank that hangs does not come to ask. Who presses Ctrl-C again, or sends another SIGTERM, then wants an end at once: a thread
of this module sees to that, for Python's handlers wait until the main thread returns from C.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gala_mpi import host, pulse
from gala_mpi.errors import FINISHED, RESUME

# The exit status that each signal gives a run, after its checkpoint. TERM, INT and HUP (a terminal that is closed) mean that it
# is not to be restarted. USR2 is for batch systems whose warning it is (Grid Engine's -notify; submitit).
FOR_GOOD = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
STATUS = {signal.SIGUSR1: RESUME, signal.SIGUSR2: RESUME, **{number: 128 + number for number in FOR_GOOD}}

SECONDS_BEFORE_JOB_END = 30.0  # for what follows the last checkpoint: closing, and the end of the batch script
SECONDS_OF_ONE_REQUEST = 3.0  # in which launcher, terminal and batch system may each send the same request
SECONDS_BEFORE_EXIT = 1.0  # MPICH's launcher drops what a rank prints just before its end
SECONDS_AFTER_THE_FIRST = 2.0  # in which the first rank of a host ends the job, so that the others need not say the same

_received: list[signal.Signals] = []
_handlers: dict[int, Callable[..., Any]] = {}  # ours
_before: dict[int, Any] = {}  # those before `listen`; none: nobody listens


def listen() -> None:
    """Handle the signals in STATUS from now on: they ask the run to save and stop. What nohup has set stays.

    Who listens already goes on.
    """
    if not _before:
        _listen()


@contextmanager
def listening() -> Iterator[None]:
    """Handle signals within, and afterwards as before."""
    writing, wakeup = _listen()
    try:
        yield
    finally:
        _handlers.clear()
        _restore(wakeup)
        os.close(writing)  # the watch ends


def _listen() -> tuple[int, int]:
    """Handle signals; return the end of the pipe that the watch reads, and the one that was written to before, or -1."""
    _received.clear()
    _before.update({number: signal.getsignal(number) for number in STATUS})
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # the numbers of signals, written as they come
    for number in STATUS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            _handlers[number] = lambda number, frame: _received.append(signal.Signals(number))
    _keep_handlers()
    threading.Thread(target=_watch, args=[reading], daemon=True, name="signals").start()
    return writing, wakeup


def _keep_handlers() -> None:
    """Handle signals by our handlers, which an environment may have replaced."""
    for number, ours in _handlers.items():
        if signal.getsignal(number) is not ours:
            signal.signal(number, ours)


def _restore(wakeup: int = -1) -> None:
    """Handle signals as before `listen`, if somebody listens: also in a forked process, an environment's worker maybe, which is
    to heed terminate()."""
    if _before:
        signal.set_wakeup_fd(wakeup)
    for number, handler in _before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _before.clear()
    _received.clear()


os.register_at_fork(after_in_child=_restore)


def ignore_late_signals() -> None:
    """Ignore signals once the run is over: Python restores default actions as it exits, and a late one would kill the rank."""
    _handlers.clear()
    for number in STATUS:
        signal.signal(number, signal.SIG_IGN)


class Insistence:
    """Tells when a request to stop for good is repeated by somebody who wants no more than an end."""

    def __init__(self):
        self._last = -SECONDS_OF_ONE_REQUEST
        self._requests = 0

    def heed(self, now: float) -> bool:
        """Return whether the run is to end at once, when a request comes at `now`, in seconds of the monotonic clock.

        The second does that if this rank has done nothing for some seconds: no update, and it is not saving. Else it goes on to
        its checkpoint, and the third ends it. What comes within some seconds is one request.
        """
        if now - self._last < SECONDS_OF_ONE_REQUEST:
            return False
        self._last, self._requests = now, self._requests + 1
        works = pulse.saving or now - pulse.worked < SECONDS_OF_ONE_REQUEST
        return self._requests > (2 if works else 1)


def _watch(reading: int) -> None:
    """End this rank, and with it the job, when somebody insists. Runs beside the main thread, and calls no MPI."""
    insistence = Insistence()
    while word := os.read(reading, 1):
        if word[0] in FOR_GOOD and insistence.heed(time.monotonic()):
            _end_at_once(signal.Signals(word[0]))
    os.close(reading)


def _end_at_once(number: signal.Signals) -> None:
    if host.rank_on_this_host():
        time.sleep(SECONDS_AFTER_THE_FIRST)
    print(
        f"gala_mpi: another {number.name} on {socket.gethostname()}, {time.monotonic() - pulse.worked:.0f} s after update "
        f"{pulse.update}: the job ends at once, without a checkpoint",
        file=sys.stderr,
        flush=True,
    )
    time.sleep(SECONDS_BEFORE_EXIT)
    pulse.end(STATUS[number])


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

    @property
    def urgent(self) -> bool:
        """Whether nothing is to be begun any more that takes long: by a signal, or since the job ends."""
        return bool(_received) or time.monotonic() - self._began + SECONDS_BEFORE_JOB_END >= self._job_left

    def ask(self, reason: str) -> None:
        """Want the run to end early, as somebody has asked for in this program; for no reason, it does not."""
        if reason:
            self._verdict = _highest([self._verdict, (RESUME, reason)])

    def requested(self, save_seconds: float) -> bool:
        """Return whether this rank wants to stop. To be called once per update.

        Args:
            save_seconds: the longest time that a checkpoint has taken so far.
        """
        _keep_handlers()
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
