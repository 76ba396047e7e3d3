"""Stop together and save together: what exchanges agree on after every update, and how a wish gets to all.

A class for each way: along headers that are read anyway, from header to header of a tree of ranks, on a collective
operation, in a word that all read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.mailbox import SAVE_AT, STOP_AT, Mailbox
from gala_mpi.mpi.readers import HeaderReader, MessageReader
from gala_mpi.mpi.roll import Roll


@dataclass(frozen=True)
class Order:
    """What agents do together: stop, or save a checkpoint."""

    stop: bool = False
    save: bool = False


class Agreement:
    """Agree with nobody: save by this rank's own clock, and stop once it wishes to. A stop once agreed on stays agreed on."""

    def __init__(self):
        self._stopping = False

    def start(self) -> None:
        """Begin. Collective."""

    def progress(self) -> None:
        """Move wishes along without waiting; called often."""

    def agree(self, wish: Order) -> Order:
        """Return what to do after an update, in answer to this rank's wish."""
        self._stopping |= wish.stop
        return Order(self._stopping, wish.save)

    def close(self, meanwhile: Callable[[], None]) -> None:
        """Serve the others until all are here, calling `meanwhile` as often as may be. Collective."""


class Headers(Agreement):
    """Pass on in headers that somebody stops, one hop an update.

    Ranks move at their own pace: each saves by its own clock, and stops as soon as it hears that somebody does.

    Args:
        mailbox: whose header others read.
        readers: of those whose headers this rank reads; may grow.
    """

    def __init__(self, mailbox: Mailbox, readers: Collection[HeaderReader | MessageReader]):
        super().__init__()
        self._mailbox, self._readers = mailbox, readers

    def agree(self, wish: Order, version: int = 0) -> Order:
        return Order(stop=self._stop_at(wish, version + 1) > 0, save=wish.save)

    def _stop_at(self, wish: Order, earliest: int) -> int:
        """Return the update at which all stop, or 0. If nobody has asked for it yet, a wish to stop makes it `earliest`."""
        if wish.stop and not self._mailbox.header[STOP_AT]:
            self._mailbox.post(STOP_AT, earliest)
        return self.pass_on_stop()

    def pass_on_stop(self) -> int:
        """Return the earliest update at which anybody stops, as far as is known, or 0; post it for those who read this rank."""
        headers = [self._mailbox.header, *(reader.header for reader in self._readers)]
        stop_at = min((int(header[STOP_AT]) for header in headers if header[STOP_AT]), default=0)
        self._mailbox.post(STOP_AT, stop_at)
        return stop_at


class Appointments(Headers):
    """Stop and save at appointments, for ranks in step.

    An appointment is an update so far ahead that everybody has heard of it by then. The earliest one to stop counts; rank 0
    alone makes those to save.

    Args:
        rank: this one.
        delay: after how many updates everybody has heard what one says now.
    """

    def __init__(self, mailbox: Mailbox, readers: Collection[HeaderReader | MessageReader], rank: int, delay: int):
        super().__init__(mailbox, readers)
        self._rank, self._delay = rank, delay

    def agree(self, wish: Order, version: int = 0) -> Order:
        stop_at = self._stop_at(wish, version + self._delay)
        save_at = max(int(header[SAVE_AT]) for header in [self._mailbox.header, *(reader.header for reader in self._readers)])
        # No agent is so far behind another: a new appointment is made when all have kept the last one.
        if wish.save and self._rank == 0 and save_at + self._delay <= version:
            save_at = version + self._delay
        self._mailbox.post(SAVE_AT, save_at)
        return Order(stop=0 < stop_at <= version, save=save_at == version)


class Tree(Headers):
    """Read headers for this alone, along a binary tree of ranks, which reaches everybody in 2 log2 n hops.

    Collective to make and to close.

    Args:
        comm: all agents.
    """

    def __init__(self, comm: MPI.Intracomm):
        mailbox = Mailbox(comm, 1)
        relatives = {(comm.rank - 1) // 2, 2 * comm.rank + 1, 2 * comm.rank + 2} & {*range(comm.size)} - {comm.rank}
        self._relatives = [HeaderReader(mailbox, peer) for peer in sorted(relatives)]
        super().__init__(mailbox, self._relatives)

    def start(self) -> None:
        self._mailbox.meet(relative.peer for relative in self._relatives)

    def progress(self) -> None:
        self._mailbox.progress()

    def agree(self, wish: Order, version: int = 0) -> Order:
        self._look()
        return super().agree(wish, version)

    def _look(self) -> None:
        for relative in self._relatives:
            relative.start()
            relative.advance()

    def _listen(self) -> None:
        """Go on passing on what others wish, once this rank is done."""
        self._look()
        self.pass_on_stop()

    def close(self, meanwhile: Callable[[], None]) -> None:
        self._mailbox.close(self._listen, meanwhile)


class Collective(Agreement):
    """Let wishes ride on a mean over all ranks that is taken anyway, so that all heed them at the same update.

    Args:
        comm: all agents.
        length: of the vectors whose mean is taken.
    """

    def __init__(self, comm: MPI.Intracomm, length: int):
        super().__init__()
        self._comm, self._roll = comm, Roll.of(comm)
        # The vector, then how many ranks have one, how many wish to stop, to save
        self._buffer = np.zeros(length + 3, np.float32)
        self._wish = self._order = Order()

    def average(self, vector: np.ndarray, counts: bool = True) -> None:
        """Replace `vector` (float32 [length]) by its mean over all ranks of which it counts; if it does of none, by NaN. The
        same bits on all ranks. Collective."""
        self._buffer[:-3] = vector if counts else 0
        self._buffer[-3:] = counts, self._wish.stop, self._wish.save
        self._wish = Order()
        self._roll.wait(self._comm.Ibarrier())  # so that who waits for long can say for whom
        # Not Allreduce: without MPI_THREAD_MULTIPLE, MPICH spins in it and yields to nobody, so that with more ranks than cores
        # each waits for its turn on a core again and again (8 ranks on 2 cores, 0.5 MB: 1.5 s, and 0.02 s so).
        self._roll.wait(self._comm.Iallreduce(MPI.IN_PLACE, [self._buffer, MPI.FLOAT], MPI.SUM))
        count = int(self._buffer[-3])
        # Not times 1 / count, whose rounding would move numbers that are equal on all ranks.
        np.divide(self._buffer[:-3], np.float32(count or np.nan), out=vector)
        # There may be several means before the next look at what was agreed on: PPO has one a minibatch.
        self._order = Order(stop=self._order.stop or self._buffer[-2] > 0, save=self._order.save or self._buffer[-1] > 0)

    def agree(self, wish: Order) -> Order:
        """Return the wishes that rode on this update's means, if it had any; `wish` rides on the next one."""
        order, self._order = self._order, Order(stop=self._order.stop)
        self._wish = Order(self._wish.stop or wish.stop, (self._wish.save or wish.save) and not order.save)
        return order


class SharedWord(Agreement):
    """Send the wish to stop to a word that all add to and read with their data; each rank saves by its own clock.

    Args:
        stop: what this rank adds to the word with its data, int64 [1].
        heard: the word as it was last read, int64 [1].
    """

    def __init__(self, stop: np.ndarray, heard: np.ndarray):
        super().__init__()
        self._stop, self._heard = stop, heard

    def agree(self, wish: Order) -> Order:
        if wish.stop:
            self._stop[0] = 1
        return Order(stop=bool(self._heard[0]), save=wish.save)
