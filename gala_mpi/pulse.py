"""When this rank last did something, for those who watch over it: `job.signals`, when it is asked to stop for a second time,
and `job.hangs`. One for each process.

Training has a pulse at every update, and a wait for other ranks at every look whether it is over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

update = 0  # the last one that this rank has done
worked = time.monotonic()  # when it last did an update, or had written a checkpoint
waited = 0.0  # when it last looked whether a wait is over
saving = False  # whether it is writing a checkpoint
end: Callable[[int], None] = os._exit  # ends the job with a status, from any thread; MPI's way once it has started


def work(done: int) -> None:
    """Note an update: this rank has done `done` of them."""
    global update, worked
    update, worked = done, time.monotonic()


def wait() -> None:
    """Note that this rank waits for others."""
    global waited
    waited = time.monotonic()


@contextmanager
def save() -> Iterator[None]:
    """Note that this rank writes a checkpoint."""
    global saving, worked
    saving = True
    try:
        yield
    finally:
        saving, worked = False, time.monotonic()
