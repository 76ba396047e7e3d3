"""Local SGD: agents learn alone for some updates, then all go on from the mean of their parameters (Stich 2019; McMahan et al.
2017, federated averaging), or take an outer step from there (learners/outer.py). Ranks wait for each other at every mean, and
two runs give the same bits.
"""

from __future__ import annotations

import torch
from mpi4py import MPI

from gala_mpi.device import on_host
from gala_mpi.exchange.agreement import Collective
from gala_mpi.exchange.base import Exchange, Settings

UPDATES = 10  # between two means, unless --sync-updates says otherwise


class Periodic(Exchange):
    """Average parameters over all ranks at every update that is a multiple of `every`, each with its own optimiser's state."""

    takes = frozenset({"sync_updates", "outer_momentum", "outer_lr"})
    collective = True

    @classmethod
    def build(cls, comm: MPI.Intracomm, length: int, settings: Settings) -> Periodic:
        return cls(comm, length, settings.sync_updates or UPDATES)

    @classmethod
    def in_step(cls, settings: Settings) -> bool:
        return True

    @classmethod
    def propagation_delay(cls, settings: Settings, agents: int) -> int:
        return settings.sync_updates or UPDATES

    def __init__(self, comm: MPI.Intracomm, length: int, every: int):
        self._mean, self._every, self._version = Collective(comm, length), every, 0
        super().__init__(comm, length, self._mean)

    def start(self, version: int, parameters: torch.Tensor) -> None:
        self._version = version  # who resumes between two means goes on from its own parameters

    def parameters(self, parameters: torch.Tensor) -> None:
        self._version += 1
        if self.at_mean():
            with on_host(parameters) as vector:
                self._mean.average(vector)

    def at_mean(self) -> bool:
        return self._version % self._every == 0
