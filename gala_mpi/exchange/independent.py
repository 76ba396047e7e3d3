"""Agents that share nothing: the control of every comparison, and what one rank does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mpi4py import MPI

from gala_mpi.exchange.base import Counters, Order
from gala_mpi.mpi.mailbox import STOP_AT, Mailbox
from gala_mpi.mpi.readers import HeaderReader


class Independent:
    """Nothing of what is learnt is sent. The word that somebody stops goes from header to header along a binary tree, which
    reaches everybody in 2 log2 n hops; each agent saves by its own clock.

    Args:
        comm: all agents.
    """

    def __init__(self, comm: MPI.Intracomm):
        self._mailbox = Mailbox(comm, 1) if comm.size > 1 else None
        relatives = {(comm.rank - 1) // 2, 2 * comm.rank + 1, 2 * comm.rank + 2} & {*range(comm.size)} - {comm.rank}
        self._relatives = [HeaderReader(self._mailbox, peer) for peer in sorted(relatives)]
        self._stopping = False

    def start(self, version: int, parameters: torch.Tensor) -> None:
        if self._mailbox:
            self._mailbox.meet(relative.peer for relative in self._relatives)

    def gradient(self, gradient: torch.Tensor) -> None: ...

    def room(self) -> None: ...

    def parameters(self, parameters: torch.Tensor) -> None: ...

    def progress(self) -> None:
        if self._mailbox:
            self._mailbox.progress()

    def agree(self, wish: Order) -> Order:
        self._stopping |= wish.stop
        self._listen()
        return Order(stop=self._stopping, save=wish.save)

    def _listen(self) -> None:
        """Hear whether a relative stops, and pass it on."""
        for relative in self._relatives:
            relative.start()
            relative.advance()
            self._stopping |= bool(relative.header[STOP_AT])
        if self._mailbox and self._stopping:
            self._mailbox.post(STOP_AT, 1)

    def counters(self) -> Counters:
        return Counters()

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        if self._mailbox:
            self._mailbox.close(self._listen, meanwhile)
