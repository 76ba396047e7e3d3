"""Agents that share nothing: the control of every comparison, and what one rank does."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from gala_mpi.exchange import Counters, Order


class Independent:
    """Nothing is sent. Each rank heeds its own signals; under mpirun and Slurm every rank gets them."""

    def __init__(self, comm: MPI.Intracomm):
        pass

    def start(self, version: int, parameters: np.ndarray) -> None: ...

    def gradient(self, gradient: np.ndarray) -> None: ...

    def parameters(self, parameters: np.ndarray) -> None: ...

    def poke(self) -> None: ...

    def agree(self, wish: Order) -> Order:
        return wish

    def counters(self) -> Counters:
        return Counters()

    def close(self) -> None: ...
