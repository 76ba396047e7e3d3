"""A rank that hangs ends the job, when it is told after how many minutes: it says where it stands, by its stacks.

A thread watches over the main one, which may be in C. Where that keeps Python's lock, this thread stands still too; then
faulthandler, which needs no Python, writes the stacks and ends the rank a little later.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time

from gala_mpi import errors, pulse
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.world import SECONDS_BEFORE_ABORT, World

SECONDS_LATER = 10.0  # that faulthandler leaves to the thread
CHECKS = 10  # within the time that is allowed


def watch(minutes: float, world: World, survive: bool) -> None:
    """End the job, from now on, when this rank has made no update and waited for nobody for `minutes`.

    Other ranks do so a little later, if it cannot (it is stopped, its host is gone): unless they are to `survive` it.
    """
    pulse.work(pulse.update)
    threading.Thread(target=_watch, args=[60 * minutes, world], daemon=True, name="hangs").start()
    if not survive:
        Roll.of(world.comm).limit = 60 * minutes


def _watch(seconds: float, world: World) -> None:
    while True:
        silent = time.monotonic() - max(pulse.worked, pulse.waited)
        if silent > seconds:
            _end(seconds, world)
        faulthandler.dump_traceback_later(seconds - silent + SECONDS_LATER, exit=True)
        time.sleep(seconds / CHECKS)


def _end(seconds: float, world: World) -> None:
    faulthandler.cancel_dump_traceback_later()
    print(
        f"gala_mpi: rank {world.rank} on {world.host} has made no update for {seconds / 60:g} minutes (--hang-minutes), "
        f"the last one was update {pulse.update}; the job ends. It stands here:",
        file=sys.stderr,
        flush=True,
    )
    faulthandler.dump_traceback()
    time.sleep(SECONDS_BEFORE_ABORT)
    pulse.end(errors.FAILED)
