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

_over = threading.Event()  # the run that is watched
_watches: list[threading.Thread] = []


def watch(minutes: float, world: World, survive: bool) -> None:
    """End the job, from now on, when this rank has made no update and waited for nobody for `minutes`.

    Other ranks do so a little later, if it cannot (it is stopped, its host is gone): unless they are to `survive` it.
    """
    pulse.work(pulse.update)
    _over.clear()
    _watches.append(threading.Thread(target=_watch, args=[60 * minutes, world], daemon=True, name="hangs"))
    _watches[-1].start()
    if not survive and not world.acts:  # an actor waits for its agent, which may wait for others, for as long as it takes
        Roll.of(world.comm).limit = 60 * minutes
        if world.crew is not None:
            Roll.of(world.crew).limit = 60 * minutes


def leave() -> None:
    """Watch no more, if somebody does: the run is over, and its program may have other things to do."""
    _over.set()
    while _watches:
        _watches.pop().join()
        faulthandler.cancel_dump_traceback_later()


def _watch(seconds: float, world: World) -> None:
    while not _over.is_set():
        silent = time.monotonic() - max(pulse.worked, pulse.waited)
        if silent > seconds:
            _end(seconds, world)
        faulthandler.dump_traceback_later(seconds - silent + SECONDS_LATER, exit=True)
        _over.wait(seconds / CHECKS)


def _end(seconds: float, world: World) -> None:
    faulthandler.cancel_dump_traceback_later()
    print(
        f"gala_mpi: {world.name} on {world.host} has made no update for {seconds / 60:g} minutes (--hang-minutes), "
        f"the last one was update {pulse.update}; the job ends. It stands here:",
        file=sys.stderr,
        flush=True,
    )
    faulthandler.dump_traceback()
    time.sleep(SECONDS_BEFORE_ABORT)
    pulse.end(errors.FAILED)
