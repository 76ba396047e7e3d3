"""A2C: gradients averaged over all ranks before every optimiser step. Ranks wait for each other and stay bit-identical."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI

from gala_mpi.device import on_host
from gala_mpi.exchange.base import Counters, Order


class AllReduce:
    """Average gradients. Wishes (stop, save) ride on the next gradient, so that all ranks heed them at the same update.

    Args:
        comm: all agents.
        length: P, the number of parameters.
    """

    def __init__(self, comm: MPI.Intracomm, length: int):
        self._comm = comm
        self._buffer = np.zeros(length + 2, np.float32)  # the gradient, then how many ranks wish to stop, to save
        self._wish = Order()
        self._order = Order()

    def start(self, version: int, parameters: torch.Tensor) -> None:
        with on_host(parameters) as vector:
            self._comm.Bcast([vector, MPI.FLOAT], root=0)

    def gradient(self, gradient: torch.Tensor) -> None:
        with on_host(gradient) as vector:
            self._buffer[:-2] = vector
            self._buffer[-2:] = self._wish.stop, self._wish.save
            self._comm.Allreduce(MPI.IN_PLACE, [self._buffer, MPI.FLOAT], MPI.SUM)
            np.multiply(self._buffer[:-2], np.float32(1 / self._comm.size), out=vector)
        self._order = Order(stop=self._buffer[-2] > 0, save=self._buffer[-1] > 0)

    def room(self) -> None: ...

    def parameters(self, parameters: torch.Tensor) -> None: ...

    def progress(self) -> None: ...

    def agree(self, wish: Order) -> Order:
        """The wishes that rode on this update's gradient; `wish` rides on the next one."""
        self._wish = Order(wish.stop, wish.save and not self._order.save)
        return self._order

    def counters(self) -> Counters:
        return Counters()

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """All are here at the same time."""
