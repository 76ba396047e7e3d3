"""A2C: gradients averaged over all ranks before every optimiser step. Ranks wait for each other and stay bit-identical."""

from __future__ import annotations

import torch
from mpi4py import MPI

from gala_mpi.device import on_host
from gala_mpi.exchange.agreement import Collective
from gala_mpi.exchange.base import Exchange, Settings, is_finite


class AllReduce(Exchange):
    """Average gradients."""

    collective = True

    @classmethod
    def in_step(cls, settings: Settings) -> bool:
        return True

    def __init__(self, comm: MPI.Intracomm, length: int):
        self._mean = Collective(comm, length)
        super().__init__(comm, length, self._mean)

    def start(self, version: int, parameters: torch.Tensor) -> None:
        with on_host(parameters) as vector:
            self._comm.Bcast([vector, MPI.FLOAT], root=0)

    def gradient(self, gradient: torch.Tensor) -> bool:
        """A gradient that is not finite is not in the mean: its agent goes on by the others'."""
        counts = is_finite(gradient)
        with on_host(gradient) as vector:
            self._mean.average(vector, counts)
        return counts
