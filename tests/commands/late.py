"""`late.py PLACE flags...`: the doctor, rank 1 of which is stopped before MPI begins, or before the ranks first meet."""

import os
import signal
import sys

from gala_mpi.doctor import start

place, *flags = sys.argv[1:]
start.SECONDS = 3.0
# The ranks speak one after the other, so that the first ends all: on a busy machine, too.
number = start.host.rank_on_this_host()
start.host.rank_on_this_host = lambda: 30 * number


def stop_rank_1() -> None:
    if os.environ.get("PMI_RANK", os.environ.get("PMIX_RANK")) == "1":
        os.kill(os.getpid(), signal.SIGSTOP)


if place == "before-mpi":
    stop_rank_1()

from gala_mpi.doctor import __main__ as doctor  # noqa: E402

World = doctor.World
doctor.World = lambda: (stop_rank_1(), World())[1]
doctor.main(flags)
