"""`ill.py ILLNESS flags...`: the doctor, on ranks one of which falls ill, or with an MPI that does."""

import os
import signal
import sys

from mpi4py import MPI

from gala_mpi.doctor import __main__ as doctor
from gala_mpi.mpi import selftest

illness, *flags = sys.argv[1:]


def stop_rank_1() -> None:
    if MPI.COMM_WORLD.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


class LostGets(MPI.Win):
    """A request that is complete at once, and nothing has come."""

    def Rget(self, origin, target_rank, target=None):
        return MPI.REQUEST_NULL


class EndlessGets(MPI.Win):
    """A request that is never complete."""

    def Rget(self, origin, target_rank, target=None):
        return MPI.COMM_SELF.Irecv([bytearray(1), MPI.BYTE], source=0, tag=99)


class OtherMemory(MPI.Win):
    """Shows something else than a rank's memory."""

    def Shared_query(self, rank):
        return bytearray(len(self.tomemory())), 1


if illness == "stopped-before":
    gather = selftest.gather
    selftest.gather = lambda *arguments: (stop_rank_1(), gather(*arguments))[1]
elif illness == "stopped-among":
    busy_target = selftest._busy_target
    selftest._busy_target = lambda *arguments: (stop_rank_1(), busy_target(*arguments))[1]
elif illness == "lost-gets-of-one":
    MPI.Win = LostGets if MPI.COMM_WORLD.rank == 1 else MPI.Win
else:
    MPI.Win = {"lost-gets": LostGets, "endless-gets": EndlessGets, "other-memory": OtherMemory}[illness]

doctor.main(flags)
